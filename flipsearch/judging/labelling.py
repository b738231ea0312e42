"""What people said of a study's answers, kept in its folder: every word, and with what chance its prompt was drawn.

A prompt of a study always has the same place in line (judging.labelling), and is in a draw where that is below its
probability. So what several draws hold together is a draw too: with the highest of a prompt's probabilities.

Which of a study's answers people should label: those that its judge is least sure of, drawn by chance.

A prompt is drawn with a probability that grows with how likely the judge is to be wrong about its answers, and stands
in the file with that probability: so the labels correct the study's rates without bias (statistics.judge_error).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flipsearch.core.errors import JudgeError, StudyError
from flipsearch.core.records import Flip, Label, Prompt, Rollout, Sampling, Verdict, rollout_id
from flipsearch.core.studies import Study, Trial
from flipsearch.judging.answer import split_answer
from flipsearch.judging.labels import HumanLabel, LabelledAnswer, Place
from flipsearch.ledger import Ledger

FILE = "labels.json"
"""In a study's folder."""


@dataclass(frozen=True, slots=True)
class StudyLabel:
    """What people said of one of a study's answers that were drawn for them."""

    place: Place
    label: HumanLabel | None
    """None: nobody said anything yet."""

    @property
    def answer(self) -> tuple[str, str]:
        """Which answer: prompt id and context id."""
        return self.place.prompt_id, self.place.context_id


def harmful_flips(trial: Trial) -> list[Flip]:
    """Return the pairs of harmful prompts that a trial's last number rests on."""
    return [flip for flip in trial.final.flips if flip.kind == "harmful"]


def study_labels(study: Study, rows: Iterable[LabelledAnswer]) -> list[StudyLabel]:
    """Return the labels among `rows` that were drawn from a study, each answer once.

    Raises JudgeError for an answer that the study does not have, or that two rows label differently.
    """
    known = _rollouts(study)
    found: list[StudyLabel] = []
    for row in rows:
        if row.place is None or row.place.study != study.name:
            continue
        if known.get((row.place.prompt_id, row.place.context_id)) != row.place.rollout_id:
            raise JudgeError(
                f"the labels name an answer to prompt '{row.place.prompt_id}' under context '{row.place.context_id}' "
                f"that study '{study.name}' does not have; is it another study of that name? Draw anew with "
                "`flipsearch judge label`."
            )
        found.append(StudyLabel(row.place, row.label))
    _check_agreed(found)
    return joined(found)


def base_rollout_id(study: Study, prompt_id: str) -> str:
    """Return the id of the answer to a prompt without context, of a study with one draw a prompt."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    sampling = Sampling(**{name: study.settings[name] for name in names})
    return rollout_id(study.model_id, prompt_id, None, sampling, 0)


def _rollouts(study: Study) -> dict[tuple[str, str], str]:
    """(prompt id, context id) -> rollout id, of all that a study's last numbers rest on."""
    flips = [(trial.context.context_id, flip) for trial in study.trials for flip in harmful_flips(trial)]
    under = {(flip.prompt_id, id): flip.rollout_ids[0] for id, flip in flips if flip.rollout_ids}
    return under | {(flip.prompt_id, ""): base_rollout_id(study, flip.prompt_id) for _, flip in flips}


def joined(*labels: Iterable[StudyLabel]) -> list[StudyLabel]:
    """Return several draws as one: each answer once, with its highest probability and the last thing said of it."""
    found: dict[tuple[str, str], StudyLabel] = {}
    for one in (one for some in labels for one in some):
        before = found.get(one.answer, one)
        chance = max(before.place.probability, one.place.probability)
        found[one.answer] = StudyLabel(replace(one.place, probability=chance), one.label or before.label)
    return list(found.values())


def _check_agreed(labels: Iterable[StudyLabel]) -> None:
    said: dict[tuple[str, str], HumanLabel] = {}
    for one in labels:
        if one.label and said.setdefault(one.answer, one.label) != one.label:
            raise JudgeError(
                f"the answer to prompt '{one.place.prompt_id}' under context '{one.place.context_id}' is labelled both "
                f"{said[one.answer]} and {one.label}; settle it, and give each answer one label."
            )


def save_labels(labels: Sequence[StudyLabel], folder: Path) -> None:
    """Write what people said of a study's answers into its folder, in place of what was there."""
    beside = folder / f".{FILE}"
    try:
        beside.write_bytes(_LABELS.dump_json(list(labels), indent=1))
        beside.replace(folder / FILE)
    except OSError as error:
        raise JudgeError(f"cannot write '{folder / FILE}': {error.strerror}; free the disk.") from error


def load_labels(folder: Path) -> list[StudyLabel]:
    """Return what people said of a study's answers; [] if nobody did. JudgeError for a file that is torn."""
    path = folder / FILE
    try:
        return _LABELS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise JudgeError(
            f"'{path}' cannot be read; delete it and run `flipsearch judge check` with the labels again."
        ) from error


_LABELS = TypeAdapter(list[StudyLabel])


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
    trials = [trial for trial in trials if trial.confirmed][:num_contexts]
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
