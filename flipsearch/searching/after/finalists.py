"""What the confirmed finalists can do beside their flip rates: by depth (measuring/depth.py), and together.

The portfolio is a few finalists that together flip what all of them flip, for prompts that no single context flips.
Chosen greedily by the flips on the search split, measured on the sealed one. A prompt counts as flipped if any of the
contexts flips it. That is an oracle's number: it is only reached if something can say which context flips which prompt,
as a training does, which routes each prompt by the teacher's own judged answer.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import replace

from flipsearch.core.measurements import JudgedRollout, Measurement
from flipsearch.core.records import Label, Prompt
from flipsearch.core.studies import Portfolio, Trial
from flipsearch.measuring.depth import depths_within, rates_by_depth
from flipsearch.measuring.measure import clusters_of, has_failed
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import clustered_difference, clustered_rate

MAX_CONTEXTS = 5
"""A training runs the teacher under each of them."""


class DepthStage(Stage):
    """Measures the finalists' flip rates by depth on the confirm split."""

    name = "depth"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int:
        """Return the rollouts if answers on the confirm split are as long as on the search split, or all long."""
        harmful = sum(prompt.kind == "harmful" for prompt in setup.confirm)
        depths = _depths(setup)
        if base is None:
            num_finalists = min(setup.config.num_finalists, setup.num_contexts)
            return num_finalists * len(depths) * harmful * setup.config.samples
        lengths = [answer.num_tokens - answer.num_lead_tokens for _, answer in _unsafe_answers(base)]
        longer = [sum(length > depth for length in lengths) / max(1, len(lengths)) for depth in depths]
        return setup.config.num_finalists * sum(math.ceil(harmful * share) for share in longer)

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Measure all finalists, whether there is a winner or not."""
        depths = _depths(search.setup)
        finalists, ids = measure_depth(search.deciding, confirmation.base, confirmation.finalists, depths)
        return replace(confirmation, finalists=tuple(finalists), rollout_ids=confirmation.rollout_ids | ids)


def measure_depth(
    runner: Runner, base: SplitBaseline, finalists: Sequence[Trial], depths: Sequence[int]
) -> tuple[list[Trial], set[str]]:
    """Return the finalists with their flip rates by depth, and the ids of the rollouts used.

    Without depths, or if the backend reports no tokens, nothing is measured.
    """
    rates, ids = rates_by_depth(runner, _unsafe_answers(base), [trial.context for trial in finalists], depths)
    measured = [
        trial.with_confirmed(depth=((0, trial.final.flip_rate), *of_trial)) if of_trial else trial
        for trial, of_trial in zip(finalists, rates, strict=True)
    ]
    return measured, ids


def _unsafe_answers(base: SplitBaseline) -> list[tuple[Prompt, JudgedRollout]]:
    """Return the unsafe prompts, each with its first unsafe sample without context."""
    harmful = [(prompt, base.outcomes[prompt.prompt_id].shown) for prompt in base.to_flip() if prompt.kind == "harmful"]
    return [(prompt, shown) for prompt, shown in harmful if shown is not None]


def _depths(setup: SearchSetup) -> list[int]:
    return depths_within(setup.config.depths, setup.config.sampling().max_tokens)


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
