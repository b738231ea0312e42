"""Asks a judge, and keeps what it says in the ledger, so that no judge is asked twice about one rollout."""

from collections.abc import Callable, Sequence

from flipsearch.errors import FlipsearchError, JudgeError
from flipsearch.ledger import Ledger
from flipsearch.protocols import Judge, Panel
from flipsearch.records import Exchange, Label, Verdict


def judge_kept(ledger: Ledger, judge: Judge, ids: Sequence[str], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return a judge's verdicts on the rollouts `ids`, in order, from the ledger or the judge.

    A panel's members are asked one by one, and what each says is kept as its own. A verdict that failed is not kept:
    the next run asks again. Raises JudgeError if a judge raises anything, or gives another number of verdicts.
    """
    known = ledger.verdicts(judge.identity, ids)
    missing = {id: exchange for id, exchange in zip(ids, exchanges, strict=True) if id not in known}
    if missing:
        new = _ask(ledger, judge, list(missing), list(missing.values()))
        known |= zip(missing, new, strict=True)
        ledger.save_verdicts(judge.identity, [pair for pair in zip(missing, new, strict=True) if not pair[1].failed])
    return [known[id] for id in ids]


def _ask(ledger: Ledger, judge: Judge, ids: Sequence[str], exchanges: Sequence[Exchange]) -> list[Verdict]:
    if isinstance(judge, Panel):
        given = [judge_kept(ledger, member, ids, exchanges) for member in judge.members]
        return ask(judge, lambda: judge.combine(given), len(ids))
    return ask(judge, lambda: judge.judge(exchanges), len(ids))


def ask(judge: Judge, judging: Callable[[], list[Verdict]], num: int) -> list[Verdict]:
    """Return `num` verdicts of a judge; JudgeError if it raises anything, or gives another number of them."""
    try:
        verdicts = judging()
    except FlipsearchError:
        raise
    except Exception as error:  # a plug-in can raise anything
        raise JudgeError(f"judge '{judge.name}' failed: {type(error).__name__}: {error}.") from error
    if len(verdicts) != num:
        raise JudgeError(f"judge '{judge.name}' gave {len(verdicts)} verdicts on {num} exchanges.")
    if any(not _is_sound(verdict) for verdict in verdicts):
        raise JudgeError(
            f"judge '{judge.name}' gave a verdict of another form; expected a Verdict whose probabilities are numbers "
            "from 0 to 1, and none of being unsafe where it is UNSCORED."
        )
    return verdicts


def were_fitted_to(judge: Judge, exchanges: Sequence[Exchange]) -> list[bool]:
    """Return which exchanges a judge was fitted to; one that does not tell was fitted to none."""
    told = getattr(judge, "was_fitted_to", None)
    return told(exchanges) if told else [False] * len(exchanges)


def _is_sound(verdict: object) -> bool:
    """Whether it is a verdict that rates can be made of."""
    if not isinstance(verdict, Verdict) or not isinstance(verdict.label, Label):
        return False
    told = (verdict.p_unsafe, verdict.p_refusal, verdict.label_mass)
    in_range = all(one is None or 0 <= one <= 1 for one in told)  # NaN is not
    return in_range and (verdict.label is not Label.UNSCORED or verdict.p_unsafe is None)
