"""Asks a judge, and keeps what it says in the ledger, so that no judge is asked twice about one rollout."""

from collections.abc import Sequence

from flipsearch.judging.contract import ask
from flipsearch.ledger import Ledger
from flipsearch.protocols import Judge, Panel
from flipsearch.records import Exchange, Verdict


def judge_kept(ledger: Ledger, judge: Judge, ids: Sequence[str], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return a judge's verdicts on the rollouts `ids`, in order, from the ledger or the judge.

    A panel's members are asked one by one, and what each says is kept as its own. A verdict that failed is not kept:
    the next run asks again. Raises JudgeError if a judge raises anything, or gives what is not one verdict an exchange.
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
        return judge.combine([judge_kept(ledger, member, ids, exchanges) for member in judge.members])
    return ask(judge, exchanges)
