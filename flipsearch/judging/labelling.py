"""Samples the answers of a study that annotators should label: more often those that its judge is least sure of.

A prompt's probability grows with how likely the judge is to be wrong about its answers, and is written beside them; so
the labels correct the study's rates without bias (statistics.judge_error).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipsearch.core.errors import StudyError
from flipsearch.core.records import Label, Prompt, Verdict
from flipsearch.core.studies import Study
from flipsearch.core.thoughts import split_answer
from flipsearch.judging.labels import AnswerPlace, HumanLabel, StudyLabel, base_rollout_id, harmful_flips
from flipsearch.ledger import Ledger

MIN_ERROR = 0.01
"""No judge counts as surer than that, so that every prompt can be sampled."""


@dataclass(frozen=True, slots=True)
class AnswerToLabel:
    """A sampled answer for annotators, without its thought, and with its earlier label if it has one."""

    prompt: str
    response: str
    place: AnswerPlace
    label: HumanLabel | None = None


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
    under all of these contexts. The same call samples the same prompts, a larger `num` those and more, and the head of
    the list is a smaller sample: annotators who stop early do not choose what they leave out. `known` labels are filled
    in. Raises StudyError for a study without such prompts, with several samples per prompt, or with changed files.
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
    probabilities = _probabilities(_doubts(ids, verdicts), num)
    turns: dict[str, float] = {}
    for id, probability in probabilities.items():
        # A prompt of a study always has the same number in [0, 1), and is sampled if that is below its probability.
        digest = hashlib.sha256(f"{study.name}\0{id}".encode()).digest()
        turns[id] = int.from_bytes(digest[:7], "big") / 2**56 / probability
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
        raise StudyError(f"study '{study.name}' samples each prompt several times; labels are for one sample each.")
    trials = [trial for trial in study.trials if trial.role == "arm" and trial.state == "complete"]
    trials = [trial for trial in trials if trial.confirmed][:num_contexts]
    if not trials:
        raise StudyError(f"study '{study.name}' has confirmed no context: there is nothing to label.")
    scored = {
        trial.context.context_id: {
            flip.prompt_id: flip.rollout_ids[0]
            for flip in harmful_flips(trial)
            if Label.UNSCORED not in (flip.before, flip.after)
        }
        for trial in trials
    }
    shared = [id for id in next(iter(scored.values())) if all(id in by_prompt for by_prompt in scored.values())]
    base = {id: base_rollout_id(study, id) for id in shared}
    return {"": base} | {context: {id: by_prompt[id] for id in shared} for context, by_prompt in scored.items()}


def _doubts(ids: Mapping[str, Mapping[str, str]], verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    """Return a doubt per prompt: the root of the chance of an error, summed over its answers.

    Probabilities in proportion to it are optimal (Neyman allocation).
    """
    doubts: dict[str, float] = {}
    for prompt_id in ids[""]:
        answers = [verdicts.get(by_prompt[prompt_id]) for by_prompt in ids.values()]
        scores = [verdict.p_unsafe if verdict else None for verdict in answers]
        errors = [0.5 if p is None else max(MIN_ERROR, min(p, 1 - p)) for p in scores]
        doubts[prompt_id] = float(sum(errors) ** 0.5)
    return doubts


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
