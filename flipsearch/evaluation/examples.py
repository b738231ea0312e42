"""Prompts and problems whose score differs between the two models, with both answers, from the ledger."""

from collections import Counter
from collections.abc import Iterator

from flipsearch.core.protocols import Judge
from flipsearch.core.records import rollout_id
from flipsearch.core.trainings import ChangedAnswer, JudgedAnswer, Metric
from flipsearch.evaluation.plan import EvaluationPlan
from flipsearch.evaluation.scorecard import ModelScores, scored_pairs
from flipsearch.ledger import Ledger

MOST_EXAMPLES = 4
"""Of each metric on each set, in each direction."""


def changed_answers(
    plan: EvaluationPlan, judge: Judge, ledger: Ledger, new: ModelScores, base: ModelScores | None
) -> list[ChangedAnswer]:
    """Return the first prompts of each set that the new model does better on, and worse; none without a base."""
    prompts = {prompt.prompt_id: prompt.text for prompt in plan.prompts}
    problems = [problem.prompt for problem_set in plan.problem_sets for problem in problem_set.problems]
    prompts |= {prompt.prompt_id: prompt.text for prompt in problems}
    examples = []
    for metric, set_name, prompt_id, is_better in _changes(plan, new, base):
        assert base is not None  # or there is no change
        before, after = (
            _answer(rollout_id(model.model_id, prompt_id, None, model.sampling, 0), metric, judge, ledger)
            for model in (base, new)
        )
        examples.append(ChangedAnswer(metric, set_name, prompts[prompt_id], before, after, is_better))
    return examples


def _changes(
    plan: EvaluationPlan, new: ModelScores, base: ModelScores | None
) -> Iterator[tuple[Metric, str, str, bool]]:
    """Yield metric, set, prompt id and whether the new model does better."""
    for scores, base_scores in zip(new.sets, base.sets if base else (), strict=base is not None):
        if scores.metric == "reasoning_accuracy" and plan.config.samples > 1:
            continue  # of several answers none is the one that changed
        shown = Counter[bool]()
        for prompt_id, own, other in scored_pairs(scores.values, base_scores.values):
            is_better = (own > other) == (scores.metric == "reasoning_accuracy")
            shown[is_better] += own != other
            if own != other and shown[is_better] <= MOST_EXAMPLES:
                yield scores.metric, scores.set_name, prompt_id, is_better


def _answer(id: str, metric: Metric, judge: Judge, ledger: Ledger) -> JudgedAnswer:
    rollout = ledger.rollouts([id], errors=True)[id]
    verdict = None if metric == "reasoning_accuracy" else ledger.verdicts(judge.identity, [id]).get(id)
    return JudgedAnswer(rollout.completion, rollout.finish_reason, rollout.opens_thinking, verdict)
