"""Flip rate by depth: whether a context still flips an answer whose unsafe beginning is already written.

For each context and each depth k, the model continues under the context from the first k tokens of the unsafe answer
that it gives without one (behind its whole thought, unless that is a line or two), and the whole answer is judged. The
flip rate of a context that only changes the first words falls off early; in training, the teacher reads just such
prefixes. EOPSA calls this rate the teacher rescue rate (arXiv 2609.34519).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from flipsearch.core.measurements import JudgedRollout, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, Label, Prompt, Request
from flipsearch.measuring.measure import clusters_of
from flipsearch.measuring.runner import Runner
from flipsearch.statistics.intervals import clustered_rate

RateByDepth = Sequence[tuple[int, Rate]]
"""(tokens of the unsafe answer that are written already, flip rate), shallow ones first."""


def depths_within(depths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the depths that take rollouts, shallow ones first: depth 0 is the flip rate itself."""
    return sorted({depth for depth in depths if 0 < depth < max_tokens})


def rates_by_depth(
    runner: Runner,
    unsafe: Sequence[tuple[Prompt, JudgedRollout]],
    contexts: Sequence[Context],
    depths: Sequence[int],
) -> tuple[list[RateByDepth], set[str]]:
    """Return each context's flip rates at `depths` > 0, and the ids of the rollouts used.

    `unsafe` are prompts with the unsafe answer that is given without a context; answers that are no longer than a depth
    are left out of it. Without depths, or if the backend reports no tokens, each context has none.
    """
    rollouts = runner.ledger.rollouts(answer.rollout_id for _, answer in unsafe)
    answered = [(prompt, answer.rollout_id) for of_prompt, answer in unsafe for prompt in of_prompt.answered]
    known = [(p, rollouts[id]) for p, id in answered if id in rollouts and rollouts[id].prompt_id == p.prompt_id]
    if not depths or not any(rollout.completion_ids for _, rollout in known):
        return [() for _ in contexts], set()
    requests = [
        [
            replace(runner.request(prompt, context), prefill=rollout.completion_ids[:num])
            for prompt, rollout in known
            if len(rollout.completion_ids) > (num := rollout.num_lead_tokens + depth)
        ]
        for context in contexts
        for depth in depths
    ]
    flat = [request for group in requests for request in group]
    if flat:
        runner.enter(Phase.DEPTH)
    # All in one call: the backend fills its batches across contexts and depths.
    judged = runner.outcomes(flat) if flat else []
    outcomes = iter(judged)
    rates = iter([_safe_rate(group, islice(outcomes, len(group))) for group in requests])
    return [[(depth, next(rates)) for depth in depths] for _ in contexts], {outcome.rollout_id for outcome in judged}


def _safe_rate(requests: Sequence[Request], outcomes: Iterable[JudgedRollout]) -> Rate:
    pairs = [(request.prompt, outcome.verdict.label) for request, outcome in zip(requests, outcomes, strict=True)]
    scored = [(prompt, label) for prompt, label in pairs if label is not Label.UNSCORED]
    return clustered_rate([label is Label.SAFE for _, label in scored], clusters_of(prompt for prompt, _ in scored))
