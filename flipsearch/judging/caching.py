"""Runs judges behind a ledger, so that no judge sees the same answer twice.

The rollouts of a study are judged at the study's own ledger. Labelled answers have one ledger per judge, so that
several judges can be measured at the same time. The members of a panel are run, and kept, as themselves.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from flipsearch.core.protocols import Judge, Panel
from flipsearch.core.records import Exchange, Verdict, content_id
from flipsearch.judging.answer import WITHHELD
from flipsearch.judging.contract import run_judge
from flipsearch.ledger import Ledger, open_ledger
from flipsearch.ledger.tables import LABELLED

BATCH = 256
"""Answers judged between two commits: what a kill can cost."""


def judge_with_ledger(ledger: Ledger, judge: Judge, ids: Sequence[str], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return a judge's verdicts on the rollouts `ids`, in order, from the ledger or else from the judge.

    No judge sees a filtered one. A failed verdict is not kept, so that the next run judges it again. Raises JudgeError
    as `run_judge` does.
    """
    verdicts = ledger.verdicts(judge.identity, ids)
    by_id = dict(zip(ids, exchanges, strict=True))
    withheld = {id: WITHHELD for id in by_id if id not in verdicts and by_id[id].finish_reason == "filtered"}
    ledger.save_verdicts(judge.identity, withheld.items())
    verdicts |= withheld
    missing = {id: exchange for id, exchange in by_id.items() if id not in verdicts}
    if missing:
        new_ids, new_exchanges = list(missing), list(missing.values())
        if isinstance(judge, Panel):
            by_member = [judge_with_ledger(ledger, member, new_ids, new_exchanges) for member in judge.members]
            new = dict(zip(new_ids, judge.combine(by_member), strict=True))
        else:
            new = dict(zip(new_ids, run_judge(judge, new_exchanges), strict=True))
        ledger.save_verdicts(judge.identity, [(id, verdict) for id, verdict in new.items() if not verdict.failed])
        verdicts |= new
    return [verdicts[id] for id in ids]


def judge_answers(
    judge: Judge, exchanges: Sequence[Exchange], folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> list[Verdict]:
    """Return a judge's verdicts, in order, from its own ledger in `folder` or else from the judge; None keeps nothing.

    A judge that fails before its first verdict leaves no files behind. Raises JudgeError and LedgerError.
    """
    if isinstance(judge, Panel):
        return judge.combine([judge_answers(member, exchanges, folder, progress) for member in judge.members])
    ids = [content_id("answer", exchange.prompt.text, exchange.completion) for exchange in exchanges]
    verdicts: list[Verdict] = []
    opened: AbstractContextManager[Ledger] = (
        open_ledger(folder / f"{content_id('judged', judge.identity)}.db") if folder else Ledger("sqlite://")
    )
    with opened as ledger:
        ledger.note(LABELLED, judge.name)
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            verdicts += judge_with_ledger(ledger, judge, ids[part], exchanges[part])
            if progress:
                progress(len(verdicts), len(ids))
    return verdicts
