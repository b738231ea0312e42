"""What people said of a study's answers, kept in its folder: every word, and with what chance its prompt was drawn.

A prompt of a study always has the same place in line (judging.labelling), and is in a draw where that is below its
probability. So what several draws hold together is a draw too: with the highest of a prompt's probabilities.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flipsearch.errors import JudgeError
from flipsearch.judging.labels import HumanLabel, LabelledAnswer, Place
from flipsearch.records import Flip, Measurement, Sampling, rollout_id
from flipsearch.studies import Study, Trial

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


def last_measurement(trial: Trial) -> Measurement:
    """Return what a trial's last number rests on: the confirm split, or what was scored."""
    return trial.confirm or trial.search


def harmful_flips(trial: Trial) -> list[Flip]:
    """Return the pairs of harmful prompts that a trial's last number rests on."""
    return [flip for flip in last_measurement(trial).flips if flip.kind == "harmful"]


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
