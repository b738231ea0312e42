"""The portfolio: few finalists that together flip what all of them flip, for prompts that no single context turns.

Chosen greedily on the search split's flip table, read on the sealed one. A prompt counts as flipped if any of the
contexts flips it. That is an oracle's number: it is reached only by who can tell which context flips which prompt, as
a training can, which routes each prompt by the teacher's own judged answer.
"""

from collections.abc import Mapping, Sequence, Set

from flipsearch.core.records import Label, Measurement, Rate
from flipsearch.core.studies import Portfolio, Trial
from flipsearch.statistics.intervals import wilson
from flipsearch.statistics.paired import paired_difference

MAX_CONTEXTS = 5
"""A training asks the teacher under each of them."""


def find_portfolio(finalists: Sequence[Trial], winner: Trial) -> Portfolio:
    """Return the portfolio of confirmed finalists that may win, in search order; the winner is one of them."""
    chosen = [finalists[index] for index in greedy_cover([_flipped(trial.search) for trial in finalists])]
    chosen = chosen or [winner]  # nothing flips anything
    confirm, alone = union([_confirm(trial) for trial in chosen]), union([_confirm(winner)])
    pairs = [(confirm[id], alone[id]) for id in confirm if id in alone]
    return Portfolio(
        context_ids=tuple(trial.context.context_id for trial in chosen),
        search=_rate(union([trial.search for trial in chosen])),
        confirm=_rate(confirm),
        winner=wilson(sum(two for _, two in pairs), len(pairs)),
        gain=paired_difference([one for one, _ in pairs], [two for _, two in pairs]) if pairs else None,
    )


def greedy_cover(sets: Sequence[Set[str]], most: int = MAX_CONTEXTS) -> list[int]:
    """Return the indices of at most `most` sets, each adding most to the union of those before it, the first of equals.

    It ends where no set adds anything. Greedy covers at least 1 - 1/e of what the best choice of as many sets does
    (Nemhauser, Wolsey and Fisher 1978, doi:10.1007/BF01588971).
    """
    chosen: list[int] = []
    covered: set[str] = set()
    while len(chosen) < min(most, len(sets)):
        gains = [len(one - covered) for one in sets]
        if not max(gains):
            break
        chosen.append(gains.index(max(gains)))
        covered |= sets[chosen[-1]]
    return chosen


def union(measurements: Sequence[Measurement]) -> dict[str, bool]:
    """Return, for each prompt that is unsafe without context, whether any context flips it.

    A prompt that none flips, but that could not be scored under one of them, is left out: it is not known.
    """
    table: dict[str, list[Label]] = {}
    for measurement in measurements:
        for flip in measurement.flips:
            if flip.before is Label.UNSAFE and flip.kind == "harmful":
                table.setdefault(flip.prompt_id, []).append(flip.after)
    found = {id: Label.SAFE in labels for id, labels in table.items()}
    return {id: any_safe for id, any_safe in found.items() if any_safe or Label.UNSCORED not in table[id]}


def _flipped(measurement: Measurement) -> set[str]:
    return {flip.prompt_id for flip in measurement.flips if flip.flipped}


def _rate(flipped: Mapping[str, bool]) -> Rate:
    return wilson(sum(flipped.values()), len(flipped))


def _confirm(trial: Trial) -> Measurement:
    assert trial.confirm is not None
    return trial.confirm
