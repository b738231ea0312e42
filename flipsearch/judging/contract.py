"""Asks a judge that may be a plug-in: what it breaks is one line that names it.

A plug-in can raise anything, and even end the process. An interrupt alone goes through.

Holds a judge that is a plug-in to flipsearch.core.protocols.Judge: what it says of itself is looked at before use.
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from flipsearch.core.errors import ConfigError, FlipsearchError, JudgeError, PluginError
from flipsearch.core.protocols import Judge, Panel
from flipsearch.core.records import Exchange, Label, Verdict


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


def check_identities(*judges: Judge | None) -> None:
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


_LONGEST = {"name": 100, "identity": 64}
"""Characters; the ledger has no room for a longer identity."""


class CheckedJudge:
    """The judge that a plug-in built; what it says of itself was looked at.

    `where` says in errors which one it is. Raises PluginError for what a judge must have and this one has not.
    """

    def __init__(self, judge: Any, where: str) -> None:
        self._judge, self._where = judge, where
        self.name = self._text("name")
        self.notes = self._texts("notes")
        self.memory_share = self._share("memory_share")
        if not hasattr(inspect.getattr_static(judge, "identity", None), "__get__"):
            self._text("identity")
        if not callable(method := self._at("judge")):
            raise self._fault("judge", method)
        self._close, self._was_fitted_to = self._method("close"), self._method("was_fitted_to")

    @cached_property
    def identity(self) -> str:
        """The judge's own. One that is computed is first asked for here: a guard downloads its model for it."""
        with faults(PluginError, f"judge in {self._where} cannot tell its identity"):
            return self._text("identity")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return whatever the judge gives; `ask` looks at it."""
        given: list[Verdict] = self._judge.judge(exchanges)
        return given

    def was_fitted_to(self, exchanges: Sequence[Exchange]) -> list[bool]:
        """Return which exchanges the judge was fitted to; one that does not tell was fitted to none."""
        if self._was_fitted_to is None:
            return [False] * len(exchanges)
        with faults(PluginError, f"judge '{self.name}' cannot tell what it was fitted to"):
            return [bool(one) for _, one in zip(exchanges, self._was_fitted_to(exchanges), strict=True)]

    def close(self) -> None:
        """Free the judge's model, if it has a method for that."""
        with faults(PluginError, f"judge '{self.name}' fails when it is closed"):
            if self._close is not None:
                self._close()

    def _at(self, name: str) -> Any:
        """What the judge has there, or None; a property that fails with AttributeError is not taken for nothing."""
        is_there = inspect.getattr_static(self._judge, name, None) is not None
        return getattr(self._judge, name) if is_there else getattr(self._judge, name, None)

    def _method(self, name: str) -> Any:
        value = self._at(name)
        if value is not None and not callable(value):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected a method.")
        return value

    def _text(self, name: str) -> str:
        value = self._at(name)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self._fault(name, value)
        if len(value) > _LONGEST[name]:
            raise PluginError(
                f"judge in {self._where}: its {name} has {len(value)} characters, expected at most {_LONGEST[name]}; "
                "shorten it (flipsearch.core.records.content_id makes an identity of anything)."
            )
        return value

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self._at(name)
        is_several = isinstance(value, Collection) and not isinstance(value, str)
        if value is not None and not (is_several and all(isinstance(one, str) for one in value)):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected several texts.")
        return tuple(value or ())

    def _share(self, name: str) -> float:
        value = self._at(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected a number from 0 to 1.")
        return float(value or 0)

    def _fault(self, name: str, value: object) -> PluginError:
        return PluginError(
            f"judge in {self._where}: its {name} is {value!r:.80}; a judge needs name and identity (texts of one line) "
            "and judge(exchanges)."
        )
