"""The flip rates of the finalists by depth (measuring/depth.py), on the confirm split."""

import math
from collections.abc import Sequence
from dataclasses import replace

from flipsearch.core.measurements import JudgedRollout
from flipsearch.core.records import Prompt
from flipsearch.core.studies import Trial
from flipsearch.measuring.depth import depths_within, rates_by_depth
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.setup import SearchSetup


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
