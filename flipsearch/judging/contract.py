"""Asks a judge that may be a plug-in: what it breaks is one line that names it.

A plug-in can raise anything, and even end the process. An interrupt alone goes through.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flipsearch.errors import ConfigError, FlipsearchError, JudgeError
from flipsearch.protocols import Judge, Panel
from flipsearch.records import Exchange, Label, Verdict


@contextmanager
def faults(kind: type[FlipsearchError], what: str) -> Iterator[None]:
    """Turn what a plug-in raises in the block into an error of one line, which begins with `what`."""
    try:
        yield
    except (FlipsearchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        why = ": ".join(filter(None, (type(error).__name__, _told(error))))
        raise kind(f"{what}: {why}.") from error


def _told(error: BaseException) -> str:
    """What an exception says of itself; nothing where it fails at that, too."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def ask(judge: Judge, exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return a judge's verdicts, in order; JudgeError if it raises anything, or gives what is not one an exchange."""
    num = len(exchanges)
    with faults(JudgeError, f"judge '{judge.name}' failed"):
        given: object = judge.judge(exchanges)
        if not isinstance(given, Sequence):
            raise JudgeError(f"judge '{judge.name}' gave {given!r:.80}, expected a list of verdicts.")
        if len(given) != num:
            raise JudgeError(f"judge '{judge.name}' gave {len(given)} verdicts on {num} exchanges.")
        for verdict in given:
            if not _is_sound(verdict):
                raise JudgeError(
                    f"judge '{judge.name}' gave a verdict of another form: {verdict!r:.160}; expected a Verdict whose "
                    "probabilities are numbers from 0 to 1: p_unsafe where it is scored, and not where it is UNSCORED."
                )
        return [_keepable(verdict) for verdict in given]


def were_fitted_to(judge: Judge, exchanges: Sequence[Exchange]) -> list[bool]:
    """Return which exchanges a judge was fitted to; one that does not tell was fitted to none."""
    told = getattr(judge, "was_fitted_to", None)
    return list(told(exchanges)) if told else [False] * len(exchanges)


def ask_identities(*judges: Judge | None) -> None:
    """Ask judges for their identity before any work, so that one that cannot tell it leaves nothing behind.

    Raises ConfigError for a panel of which two members are the same judge, however they are written.
    """
    for judge in judges:
        if judge is not None:
            judge.identity  # noqa: B018
        if isinstance(judge, Panel):
            _require_different(judge)


def _require_different(panel: Panel) -> None:
    first: dict[str, int] = {}
    for number, member in enumerate(panel.members, start=1):
        if (other := first.setdefault(member.identity, number)) != number:
            raise ConfigError(
                f"judge '{panel.name}': its judges {other} and {number} ({member.name}) are one judge under two "
                "spellings; name each judge of a panel once."
            )


def _keepable(verdict: Verdict) -> Verdict:
    """The verdict with a reason that can be encoded; a judge that quotes hostile text may quote half a character."""
    return replace(verdict, reason=verdict.reason.encode(errors="replace").decode())


def _is_sound(verdict: object) -> bool:
    """Whether it is a verdict that rates can be made of."""
    if not isinstance(verdict, Verdict) or not isinstance(verdict.label, Label) or not isinstance(verdict.reason, str):
        return False
    told = [one for one in (verdict.p_unsafe, verdict.p_refusal, verdict.label_mass) if one is not None]
    in_range = all(isinstance(one, int | float) and 0 <= one <= 1 for one in told)  # NaN is not
    return in_range and (verdict.label is Label.UNSCORED) == (verdict.p_unsafe is None)
