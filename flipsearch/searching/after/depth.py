"""Flip rate by depth: whether a context still flips an answer whose unsafe beginning is already written.

For each finalist and each depth k, the model continues under the context from the first k tokens of the unsafe answer
that it gives without one (behind its whole thought, unless that is a line or two), and the whole answer is judged. The
flip rate of a context that only changes the first words falls off early; in training, the teacher reads just such
prefixes. EOPSA calls this rate the teacher rescue rate (arXiv 2609.34519).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import JudgedRollout, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Prompt, Request
from flipsearch.core.studies import Trial
from flipsearch.measuring.measure import clusters_of
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import clustered_rate


class DepthStage(Stage):
    """Measures the finalists' flip rates by depth on the confirm split."""

    name = "depth"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int:
        """Return the rollouts if answers on the confirm split are as long as on the search split, or all long."""
        harmful = sum(prompt.kind == "harmful" for prompt in setup.confirm)
        depths = depths_of(setup.config)
        if base is None:
            num_finalists = min(setup.config.num_finalists, setup.num_contexts)
            return num_finalists * len(depths) * harmful * setup.config.samples
        lengths = [answer.num_tokens - answer.num_lead_tokens for _, answer in _unsafe_answers(base)]
        longer = [sum(length > depth for length in lengths) / max(1, len(lengths)) for depth in depths]
        return setup.config.num_finalists * sum(math.ceil(harmful * share) for share in longer)

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Measure all finalists, whether there is a winner or not."""
        depths = depths_of(search.setup.config)
        finalists, ids = measure_depth(search.deciding, confirmation.base, confirmation.finalists, depths)
        return replace(confirmation, finalists=tuple(finalists), rollout_ids=confirmation.rollout_ids | ids)


def depths_of(config: SearchConfig) -> list[int]:
    """Return the depths that take rollouts, shallow ones first: depth 0 is the flip rate itself."""
    return sorted({depth for depth in config.depths if 0 < depth < config.sampling().max_tokens})


def measure_depth(
    runner: Runner, base: SplitBaseline, finalists: Sequence[Trial], depths: Sequence[int]
) -> tuple[list[Trial], set[str]]:
    """Return the finalists with their flip rates by depth, and the ids of the rollouts used.

    Answers that are no longer than a depth are left out of it. Without depths, or if the backend reports no tokens,
    nothing is measured.
    """
    unsafe = _unsafe_answers(base)
    rollouts = runner.ledger.rollouts(answer.rollout_id for _, answer in unsafe)
    known = [(prompt, rollouts[answer.rollout_id]) for prompt, answer in unsafe if answer.rollout_id in rollouts]
    if not depths or not any(rollout.completion_ids for _, rollout in known):
        return list(finalists), set()
    requests = [
        [
            replace(runner.request(prompt, trial.context), prefill=rollout.completion_ids[:num])
            for prompt, rollout in known
            if len(rollout.completion_ids) > (num := rollout.num_lead_tokens + depth)
        ]
        for trial in finalists
        for depth in depths
    ]
    flat = [request for group in requests for request in group]
    if flat:
        runner.enter(Phase.DEPTH)
    # All in one call: the backend fills its batches across contexts and depths.
    judged = runner.outcomes(flat) if flat else []
    outcomes = iter(judged)
    rates = iter([_safe_rate(group, islice(outcomes, len(group))) for group in requests])
    measured = [
        trial.with_confirmed(depth=((0, trial.final.flip_rate), *((depth, next(rates)) for depth in depths)))
        for trial in finalists
    ]
    return measured, {outcome.rollout_id for outcome in judged}


def _safe_rate(requests: Sequence[Request], outcomes: Iterable[JudgedRollout]) -> Rate:
    pairs = [(request.prompt, outcome.verdict.label) for request, outcome in zip(requests, outcomes, strict=True)]
    scored = [(prompt, label) for prompt, label in pairs if label is not Label.UNSCORED]
    return clustered_rate([label is Label.SAFE for _, label in scored], clusters_of(prompt for prompt, _ in scored))


def _unsafe_answers(base: SplitBaseline) -> list[tuple[Prompt, JudgedRollout]]:
    """Return the unsafe prompts, each with its first unsafe sample without context."""
    harmful = [(prompt, base.outcomes[prompt.prompt_id].shown) for prompt in base.to_flip() if prompt.kind == "harmful"]
    return [(prompt, shown) for prompt, shown in harmful if shown is not None]
