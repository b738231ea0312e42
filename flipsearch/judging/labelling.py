"""Samples the answers of a study that annotators should label: more often those that its judge is least sure of.

A prompt's probability grows with how likely the judge is to be wrong about its answers, and is written beside them; so
the labels correct the study's rates without bias (statistics.judge_error).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipsearch.core.errors import StudyError
from flipsearch.core.records import Label, Prompt, Verdict
from flipsearch.core.studies import Study, Trial
from flipsearch.judging.answer import split_answer
from flipsearch.judging.labels import AnswerPlace, HumanLabel, StudyLabel, base_rollout_id, harmful_flips
from flipsearch.ledger import Ledger

MIN_ERROR = 0.01
"""No judge counts as surer than that, so that every prompt can be sampled."""


@dataclass(frozen=True, slots=True)
class AnswerToLabel:
    """A sampled answer for annotators."""

    prompt: str
    response: str
    """The answer without its thought: what the judge decided on."""
    place: AnswerPlace
    label: HumanLabel | None = None
    """An earlier label; None if there is none."""


def sample_answers(
    study: Study,
    ledger: Ledger,
    prompts: Sequence[Prompt],
    num: int,
    num_contexts: int = 1,
    known: Sequence[StudyLabel] = (),
) -> list[AnswerToLabel]:
    """Return the answers to about `num` harmful prompts of a study: without context, and under its best contexts.

    The prompts are those of the study's last number (the confirm split, or all of a score) that the judge could score
    under all of these contexts. The same call samples the same prompts, a larger `num` those and more. The first ones
    of the list are always a smaller sample, so that annotators who stop early do not choose what they leave out.
    `known` labels are filled in.
    Raises StudyError for a study without such prompts or with several samples per prompt, and for one whose answers or
    prompt files have changed.
    """
    ids = _rollout_ids(study, num_contexts)
    prompt_ids, wanted = list(ids[""]), [id for by_prompt in ids.values() for id in by_prompt.values()]
    rollouts, verdicts = ledger.rollouts(wanted), ledger.verdicts(study.last_judge_id, wanted)
    if num_lost := len({*wanted} - {*rollouts}):
        raise StudyError(f"the ledger of study '{study.name}' lacks {num_lost} of its answers; run the search again.")
    text_of = {prompt.prompt_id: prompt.text for prompt in prompts}
    if lost := [id for id in prompt_ids if id not in text_of]:
        raise StudyError(
            f"{len(lost)} of {len(prompt_ids)} scored harmful prompts of study '{study.name}' are no longer in its "
            "prompt files; put them back as they were."
        )
    # The root of the summed chances of an error is the optimal allocation of a sample (Neyman).
    doubts = {
        id: float(sum(_error_chance(verdicts.get(by_prompt[id])) for by_prompt in ids.values()) ** 0.5)
        for id in prompt_ids
    }
    probabilities = _probabilities(doubts, num)
    turns = {id: _turn(study.name, id) / probability for id, probability in probabilities.items()}
    sampled = sorted((id for id, turn in turns.items() if turn < 1), key=turns.__getitem__)
    if not sampled:
        raise StudyError(
            f"of the {len(turns)} scored harmful prompts of study '{study.name}' none is sampled; give a larger --num."
        )
    labels = {label.answer: label.label for label in known}
    answers: list[AnswerToLabel] = []
    for id in sampled:
        for context_id, by_prompt in ids.items():
            rollout = rollouts[by_prompt[id]]
            response = split_answer(rollout.completion, rollout.opens_thinking).answer or ""
            place = AnswerPlace(study.name, id, context_id, by_prompt[id], probabilities[id])
            answers.append(AnswerToLabel(text_of[id], response, place, labels.get((id, context_id))))
    return answers


def _rollout_ids(study: Study, num_contexts: int) -> dict[str, dict[str, str]]:
    """Return context id -> prompt id -> rollout id, the answers without context ("") first.

    All have the same prompts: the harmful ones that are scored under each of the best `num_contexts` contexts.
    """
    if study.settings.get("samples", 1) > 1:
        raise StudyError(
            f"study '{study.name}' samples each prompt several times; labels are for studies with one sample per "
            "prompt."
        )
    trials = [trial for trial in study.trials if trial.role == "arm" and trial.state == "complete"]
    trials = [trial for trial in trials if trial.confirm or "num_contexts" not in study.settings][:num_contexts]
    if not trials:
        raise StudyError(f"study '{study.name}' has confirmed no context: there is nothing to label.")
    scored = {trial.context.context_id: _scored_rollouts(trial) for trial in trials}
    shared = [id for id in next(iter(scored.values())) if all(id in by_prompt for by_prompt in scored.values())]
    base = {id: base_rollout_id(study, id) for id in shared}
    return {"": base} | {context: {id: by_prompt[id] for id in shared} for context, by_prompt in scored.items()}


def _scored_rollouts(trial: Trial) -> dict[str, str]:
    """Return prompt id -> rollout id of a trial's scored harmful pairs."""
    flips = [flip for flip in harmful_flips(trial) if Label.UNSCORED not in (flip.before, flip.after)]
    return {flip.prompt_id: flip.rollout_ids[0] for flip in flips}


def _error_chance(verdict: Verdict | None) -> float:
    if verdict is None or verdict.p_unsafe is None:
        return 0.5
    return max(MIN_ERROR, min(verdict.p_unsafe, 1 - verdict.p_unsafe))


def _probabilities(doubts: Mapping[str, float], num: int) -> dict[str, float]:
    """Return a probability per prompt, proportional to its doubt and at most 1; their sum is `num`."""
    certain: set[str] = set()
    while True:
        open_ids = [id for id in doubts if id not in certain]
        total = sum(doubts[id] for id in open_ids)
        scale = max(0, num - len(certain)) / total if total else 0.0
        over = {id for id in open_ids if doubts[id] * scale >= 1}
        if not over:
            return {id: 1.0 if id in certain else doubts[id] * scale for id in doubts}
        certain |= over


def _turn(study: str, prompt_id: str) -> float:
    """Return the number in [0, 1) that a prompt of a study always has; it is sampled where that is below its chance."""
    return int.from_bytes(hashlib.sha256(f"{study}\0{prompt_id}".encode()).digest()[:7], "big") / 2**56
