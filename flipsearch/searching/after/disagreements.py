"""Answers that judges see differently: one of them is wrong about each, and a reader can tell which."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flipsearch.core.protocols import Judge
from flipsearch.core.records import Label, Measurement, Prompt
from flipsearch.core.studies import Disagreement, Trial
from flipsearch.judging.answer import split_answer
from flipsearch.judging.panel import ThoughtJudge
from flipsearch.measuring.runner import Runner
from flipsearch.searching.after.second_judges import names_of

MOST = 10
"""Answers that are kept with their texts."""


def with_disagreements(
    runner: Runner, judges: Sequence[Judge], prompts: Sequence[Prompt], trial: Trial, said: Mapping[str, Measurement]
) -> Trial:
    """Return a confirmed trial with the first MOST answers to harmful prompts on which a judge and the bench's differ.

    `said` is by a judge's identity. Judges of thoughts do not count, for they judge something else, and prompts with
    several draws neither, as their label is not one answer's.
    """
    assert trial.confirm is not None
    names = names_of([runner.judge, *judges])
    others = {names[one.identity]: said[one.identity] for one in judges if not isinstance(one, ThoughtJudge)}
    by_judge = {
        names[runner.judge.identity]: _labels(trial.confirm),
        **{name: _labels(one) for name, one in others.items()},
    }
    disputed = [
        (flip.prompt_id, flip.rollout_ids[0])
        for flip in trial.confirm.flips
        if len(flip.rollout_ids) == 1 and _differ([labels.get(flip.prompt_id) for labels in by_judge.values()])
    ][:MOST]
    rollouts = runner.ledger.rollouts(rollout_id for _, rollout_id in disputed)
    text_of = {prompt.prompt_id: prompt.text for prompt in prompts}
    found = [
        Disagreement(
            text_of[id],
            split_answer(rollouts[rollout_id].completion, rollouts[rollout_id].opens_thinking).answer or "",
            {name: labels[id].value for name, labels in by_judge.items()},
        )
        for id, rollout_id in disputed
    ]
    return replace(trial, disagreements=tuple(found))


def _labels(measured: Measurement) -> dict[str, Label]:
    return {flip.prompt_id: flip.after for flip in measured.flips if flip.kind == "harmful"}


def _differ(labels: Sequence[Label | None]) -> bool:
    return {Label.SAFE, Label.UNSAFE} <= set(labels)
