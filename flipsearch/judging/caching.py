"""Asks a judge, and keeps what it says in the ledger, so that no judge is asked twice about one rollout.

What judges said of answers that people labelled, kept in a ledger a judge: a kill loses no more than one batch.

A ledger of its own lets one judge be asked while another is; the members of a panel are asked, and kept, as themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from flipsearch.core.protocols import Judge, Panel
from flipsearch.core.records import Exchange, Verdict, content_id
from flipsearch.judging.contract import ask
from flipsearch.ledger import Ledger
from flipsearch.ledger.tables import LABELLED


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


BATCH = 256
"""Answers judged between two commits."""


def judge_answers(
    judge: Judge, exchanges: Sequence[Exchange], folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> list[Verdict]:
    """Return a judge's verdicts, in order, from its ledger in a folder or from itself; None keeps nothing.

    A judge that fails before it judged anything leaves nothing behind. Raises JudgeError and LedgerError as they come.
    """
    if isinstance(judge, Panel):
        return judge.combine([judge_answers(member, exchanges, folder, progress) for member in judge.members])
    ids = [content_id("answer", one.prompt.text, one.completion) for one in exchanges]
    verdicts: list[Verdict] = []
    with _opened(folder and folder / f"{content_id('judged', judge.identity)}.db", verdicts) as ledger:
        ledger.note(LABELLED, judge.name)
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            verdicts += judge_kept(ledger, judge, ids[part], exchanges[part])
            if progress:
                progress(len(verdicts), len(ids))
    return verdicts


@contextmanager
def _opened(path: Path | None, verdicts: Sequence[Verdict]) -> Iterator[Ledger]:
    """The ledger at a path; one that is new and holds no verdicts when the block fails is removed, with its folders."""
    if path is None:
        with Ledger("sqlite://") as ledger:
            yield ledger
        return
    missing = [one for one in (path, *path.parents) if not one.exists()]
    with Ledger(path) as ledger:  # one that does not open is another's
        try:
            yield ledger
        except BaseException:
            if path in missing and not verdicts:
                ledger.close()
                _remove(path, missing[1:])
            raise


def _remove(path: Path, folders: Sequence[Path]) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
