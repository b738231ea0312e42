"""Which of a study's answers people should label: those that its judge is least sure of, drawn by chance.

A prompt is drawn with a probability that grows with how likely the judge is to be wrong about its answers, and stands
in the file with that probability: so the labels correct the study's rates without bias (statistics.judge_error).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipsearch.errors import StudyError
from flipsearch.judging.answer import split_answer
from flipsearch.judging.labels import HumanLabel, Place
from flipsearch.judging.study_labels import StudyLabel, base_rollout_id, harmful_flips
from flipsearch.ledger import Ledger
from flipsearch.records import Label, Prompt, Rollout, Verdict
from flipsearch.studies import Study, Trial

LEAST_ERROR = 0.01
"""No judge is surer than that: every prompt has a chance to be drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer for people to label."""

    prompt: str
    response: str
    """The answer without its thought: what the judge decided on."""
    place: Place
    label: HumanLabel | None = None
    """What people said before; None if nobody did."""


def draw_answers(
    study: Study,
    ledger: Ledger,
    prompts: Sequence[Prompt],
    num: int,
    num_contexts: int = 1,
    known: Sequence[StudyLabel] = (),
) -> list[Drawn]:
    """Return the answers to about `num` harmful prompts of a study: without context, and under its best contexts.

    The prompts are those that the study's last number rests on (the confirm split, or all of a score) and that the
    judge could score under all of these contexts. The same call draws the same prompts, a larger `num` those and more.
    They come in an order in which the first of them are a smaller draw, so that whoever stops early leaves out none by
    choice. `known` labels are filled in.
    Raises StudyError for a study without such prompts or with several draws a prompt, and for one whose answers or
    prompt files are not what they were.
    """
    if study.settings.get("samples", 1) > 1:
        raise StudyError(f"study '{study.name}' draws each prompt several times; labels are for studies with one draw.")
    trials = [trial for trial in study.trials if trial.role == "arm" and trial.state == "complete"]
    trials = [trial for trial in trials if trial.confirm or "num_contexts" not in study.settings][:num_contexts]
    if not trials:
        raise StudyError(f"study '{study.name}' has confirmed no context: there is nothing to label.")
    text_of = {prompt.prompt_id: prompt.text for prompt in prompts}
    answers = _Answers(study, ledger, trials)
    if lost := [id for id in answers.prompt_ids if id not in text_of]:
        raise StudyError(
            f"{len(lost)} of {len(answers.prompt_ids)} scored harmful prompts of study '{study.name}' are no longer in "
            "its prompt files; put them back as they were."
        )
    chances = _probabilities({id: answers.doubt(id) for id in answers.prompt_ids}, num)
    turns = {id: _place_in_line(study.name, id) / chance for id, chance in chances.items()}
    drawn = sorted((id for id, turn in turns.items() if turn < 1), key=turns.__getitem__)
    if not drawn:
        raise StudyError(
            f"of the {len(turns)} scored harmful prompts of study '{study.name}' none is drawn; give a larger --num."
        )
    said = {one.answer: one.label for one in known}
    return [
        Drawn(
            text_of[id],
            answers.text(id, context_id),
            Place(study.name, id, context_id, answers.rollout_id(id, context_id), chances[id]),
            said.get((id, context_id)),
        )
        for id in drawn
        for context_id in answers.context_ids
    ]


class _Answers:
    """The judged answers of a study to its harmful prompts, without context ("") and under some of its contexts."""

    def __init__(self, study: Study, ledger: Ledger, trials: Sequence[Trial]) -> None:
        by_trial = {
            trial.context.context_id: {
                flip.prompt_id: flip.rollout_ids[0]
                for flip in harmful_flips(trial)
                if Label.UNSCORED not in (flip.before, flip.after)
            }
            for trial in trials
        }
        first = next(iter(by_trial.values()))
        self.prompt_ids = [id for id in first if all(id in ids for ids in by_trial.values())]
        base = {id: base_rollout_id(study, id) for id in self.prompt_ids}
        self._ids: Mapping[str, Mapping[str, str]] = {"": base, **by_trial}
        wanted = [ids[id] for ids in self._ids.values() for id in self.prompt_ids]
        self._rollouts: Mapping[str, Rollout] = ledger.rollouts(wanted)
        self._verdicts: Mapping[str, Verdict] = ledger.verdicts(study.last_judge_id, wanted)
        if num := len({*wanted} - {*self._rollouts}):
            raise StudyError(f"the ledger of study '{study.name}' lacks {num} of its answers; run the search again.")

    @property
    def context_ids(self) -> list[str]:
        return list(self._ids)

    def rollout_id(self, prompt_id: str, context_id: str) -> str:
        return self._ids[context_id][prompt_id]

    def text(self, prompt_id: str, context_id: str) -> str:
        rollout = self._rollouts[self._ids[context_id][prompt_id]]
        return split_answer(rollout.completion, rollout.opens_thinking).answer or ""

    def doubt(self, prompt_id: str) -> float:
        """The root of the chance that the judge is wrong, summed over the answers: the best share of a sample."""
        errors = (self._error(ids[prompt_id]) for ids in self._ids.values())
        return float(sum(errors) ** 0.5)

    def _error(self, id: str) -> float:
        verdict = self._verdicts.get(id)
        p_unsafe = verdict.p_unsafe if verdict else None
        return 0.5 if p_unsafe is None else max(LEAST_ERROR, min(p_unsafe, 1 - p_unsafe))


def _probabilities(doubts: Mapping[str, float], num: int) -> dict[str, float]:
    """Return a probability for each prompt, in proportion to its doubt and at most 1, that sum up to `num`."""
    certain: set[str] = set()
    while True:
        open_ids = [id for id in doubts if id not in certain]
        total = sum(doubts[id] for id in open_ids)
        scale = max(0, num - len(certain)) / total if total else 0.0
        over = {id for id in open_ids if doubts[id] * scale >= 1}
        if not over:
            return {id: 1.0 if id in certain else doubts[id] * scale for id in doubts}
        certain |= over


def _place_in_line(study: str, prompt_id: str) -> float:
    """A number in [0, 1) that a prompt of a study always has: it is drawn where that is below its probability."""
    return int.from_bytes(hashlib.sha256(f"{study}\0{prompt_id}".encode()).digest()[:7], "big") / 2**56
