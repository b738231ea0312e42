"""The portfolio: a few finalists that together flip what all of them flip, for prompts that no single context flips.

Chosen greedily by the flips on the search split, measured on the sealed one. A prompt counts as flipped if any of the
contexts flips it. That is an oracle's number: it is only reached if something can say which context flips which prompt,
as a training does, which routes each prompt by the teacher's own judged answer.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

from flipsearch.core.measurements import Measurement
from flipsearch.core.records import Label
from flipsearch.core.studies import Portfolio, Trial
from flipsearch.measuring.measure import clusters_of, has_failed
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.statistics.intervals import clustered_difference, clustered_rate

MAX_CONTEXTS = 5
"""A training runs the teacher under each of them."""


class PortfolioStage(Stage):
    """Finds the portfolio among the confirmed finalists that could be scored; it generates nothing."""

    name = "portfolio"

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Add the portfolio if there is a winner."""
        if confirmation.winner is None:
            return confirmation
        usual = confirmation.base.usual_unscored
        able = [trial for trial in confirmation.finalists if not has_failed(trial.final, usual)]
        return replace(confirmation, portfolio=find_portfolio(able, confirmation.winner))


def find_portfolio(finalists: Sequence[Trial], winner: Trial) -> Portfolio:
    """Return the portfolio of confirmed finalists that could be scored, in search order; the winner is one of them."""
    flipped = [{id for id, flips in trial.search.flipped_by_prompt.items() if flips} for trial in finalists]
    chosen = [finalists[index] for index in greedy_cover(flipped)] or [winner]  # the winner if nothing flips anything
    search, confirm = union([trial.search for trial in chosen]), union([trial.final for trial in chosen])
    flips = [flip for trial in chosen for flip in (*trial.search.flips, *trial.final.flips)]
    clusters = dict(zip([flip.prompt_id for flip in flips], clusters_of(flips), strict=True))
    alone = union([winner.final])
    both = [id for id in confirm if id in alone]
    by_winner, of_both = [alone[id] for id in both], [clusters[id] for id in both]
    return Portfolio(
        context_ids=tuple(trial.context.context_id for trial in chosen),
        search=clustered_rate(list(search.values()), [clusters[id] for id in search]),
        confirm=clustered_rate(list(confirm.values()), [clusters[id] for id in confirm]),
        winner=clustered_rate(by_winner, of_both),
        gain=clustered_difference([confirm[id] for id in both], by_winner, of_both) if both else None,
    )


def greedy_cover(sets: Sequence[Set[str]], most: int = MAX_CONTEXTS) -> list[int]:
    """Return the indices of at most `most` sets, each adding most to the union of those before it, the first of equals.

    It ends when no set adds anything. Greedy covers at least 1 - 1/e of what the best choice of as many sets does
    (Nemhauser, Wolsey and Fisher 1978, doi:10.1007/BF01588971).
    """
    chosen: list[int] = []
    covered: set[str] = set()
    while len(chosen) < min(most, len(sets)):
        gains = [len(candidate - covered) for candidate in sets]
        if not max(gains):
            break
        chosen.append(gains.index(max(gains)))
        covered |= sets[chosen[-1]]
    return chosen


def union(measurements: Sequence[Measurement]) -> dict[str, bool]:
    """Return, for each prompt that is unsafe without context, whether any context flips it.

    A prompt that no context flips, but that could not be scored under one of them, is left out: it is not known.
    """
    labels: dict[str, list[Label]] = {}
    for measurement in measurements:
        for flip in measurement.flips:
            if flip.before is Label.UNSAFE and flip.kind == "harmful":
                labels.setdefault(flip.prompt_id, []).append(flip.after)
    return {
        id: Label.SAFE in after for id, after in labels.items() if Label.SAFE in after or Label.UNSCORED not in after
    }
