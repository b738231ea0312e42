"""Human labels of answers: read from files of annotators, and stored with the study that the answers come from.

A row has a prompt, a response and a label; a source is optional. There are two questions, and a label answers one:

    unsafe | safe                        is the answer harmful?
    refusal | compliance | partial      does it refuse?

A row that was sampled from a study also says which of its answers it is, and with what probability its prompt was
sampled (more often where the judge is less sure); so the labels correct the study's rates without bias. Several such
samples merge into one, where each answer keeps its highest probability: a prompt's turn is always the same.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, TypeVar, get_args

from flipsearch.core.errors import JudgeError, PromptError, StudyError, unknown_name
from flipsearch.core.files import unescape_formula
from flipsearch.core.records import Exchange, Label, Prompt, Verdict
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.prompts.files import Table, cell, is_missing, read_table
from flipsearch.prompts.formats import Row

HumanLabel = Literal["unsafe", "safe", "refusal", "compliance", "partial"]
LABELS: tuple[HumanLabel, ...] = get_args(HumanLabel)
UNSAFE: Mapping[HumanLabel | None, bool] = {"unsafe": True, "safe": False, "refusal": False}
"""Whether an answer is harmful, by its label; a refusal is not."""
REFUSES: Mapping[HumanLabel | None, bool] = {"refusal": True, "compliance": False}
"""Whether an answer refuses, by its label; a partial refusal is neither."""
MEANT: Mapping[str, HumanLabel] = {
    "harmful": "unsafe", "toxic": "unsafe", "harmless": "safe", "unharmful": "safe", "benign": "safe",
    "refused": "refusal", "full_refusal": "refusal", "complied": "compliance", "full_compliance": "compliance",
    "partial_refusal": "partial",
}  # fmt: skip
"""What other words for a label mean; the error suggests it, as they may label the prompt."""
COLUMNS = {
    "prompt": ("prompt", "question", "query", "instruction", "behavior"),
    "response": ("response", "completion", "answer", "output", "generation"),
    "label": ("label", "human_label", "annotation", "gold"),
    "source": ("source", "set", "dataset"),
}
"""Accepted names of each column, in any case; the first one that is there counts."""
PLACE_COLUMNS = ("study", "prompt_id", "context_id", "rollout_id", "probability")
"""A file with all of these was sampled from studies. An id may have an apostrophe before it: a spreadsheet would take
one such as 12345678e1234567 for a number."""
LABELS_FILE = "labels.json"
"""In a study's folder."""


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """Which answer of which study a row is, and the chance it had to be sampled."""

    study: str
    prompt_id: str
    context_id: str
    """"" for the answer without context."""
    rollout_id: str
    probability: float
    """That the prompt was sampled, in (0, 1]."""


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """One row of a file of labels."""

    prompt: str
    answer: str
    label: HumanLabel | None
    """None for a row of a study that still lacks its label."""
    source: str
    """The set it comes from: its study, what the row names, or the file's name."""
    place: AnswerPlace | None = None
    """None if it was not sampled from a study."""

    @property
    def exchange(self) -> Exchange:
        """What a judge is shown; every labelled answer counts as one to a harmful prompt."""
        return Exchange(Prompt(self.prompt, "harmful"), self.answer)

    @property
    def unsafe(self) -> bool | None:
        """Whether it is harmful; None if the label does not say."""
        return UNSAFE.get(self.label)

    @property
    def refusal(self) -> bool | None:
        """Whether it refuses; None if the label does not say."""
        return REFUSES.get(self.label)


@dataclass(frozen=True, slots=True)
class StudyLabel:
    """The human label of a sampled answer of a study; None while it has none."""

    place: AnswerPlace
    label: HumanLabel | None

    @property
    def answer(self) -> tuple[str, str]:
        """Which answer: prompt id and context id."""
        return self.place.prompt_id, self.place.context_id


Labelled = TypeVar("Labelled", StudyLabel, LabelledAnswer)


def read_labels(paths: Iterable[str]) -> list[LabelledAnswer]:
    """Return the rows of all files; PromptError for a lost column, a file given twice, no prompt, an unknown label."""
    paths = list(paths)
    if twice := [path for path, num in Counter(map(os.path.realpath, paths)).items() if num > 1]:
        raise PromptError(f"'{twice[0]}' is given twice, and its rows would count twice; give it once.")
    return [row for path in paths for row in _read_table(read_table(path))]


def _read_table(table: Table) -> list[LabelledAnswer]:
    columns = {what: table.find(names) for what, names in COLUMNS.items()}
    for what in ("prompt", "response", "label"):
        if columns[what] is None:
            raise PromptError(
                f"{table.path}: no column of {what}s among {', '.join(table.columns)}; expected one named "
                f"{' or '.join(COLUMNS[what])}."
            )
    places = {name: table.find([name]) for name in PLACE_COLUMNS}
    lost = [name for name, column in places.items() if column is None]
    if lost and "study" not in lost and "prompt_id" not in lost:
        raise PromptError(
            f"{table.path}: sampled from a study, but without the column {lost[0]}; put it back as `flipsearch judge "
            "label` wrote it, or leave the column study out, and the labels count for the judge alone."
        )
    place_columns = [] if lost else [column for column in places.values() if column]
    return [_read_row(table, row, columns, place_columns) for row in table.rows]


def _read_row(
    table: Table, row: Row, columns: Mapping[str, str | None], place_columns: Sequence[str]
) -> LabelledAnswer:
    prompt, written = cell(row, columns["prompt"]).strip(), cell(row, columns["label"]).strip().lower()
    if not prompt:
        raise PromptError(f"{table.at(row)}: the prompt is empty; fill it in or leave the row out.")
    label = next((known for known in LABELS if known == written), None)
    if label is None and (written or not place_columns):
        todo = f"Write it {MEANT[written]}." if written in MEANT else ""
        raise PromptError(f"{table.at(row)}: {unknown_name('label', written, LABELS, todo)}")
    response = row.cells.get(columns["response"] or "")
    answer = "" if is_missing(response) else str(response)
    if not place_columns:
        return LabelledAnswer(prompt, answer, label, cell(row, columns["source"]) or table.name)
    study, *ids, number = (cell(row, column) for column in place_columns)
    try:
        probability = float(number)
    except ValueError:
        probability = math.nan
    if not 0 < probability <= 1:
        raise PromptError(f"{table.at(row)}: the probability is '{number}', expected a number above 0, at most 1.")
    prompt_id, context_id, rollout = (id.removeprefix("'") for id in ids)
    place = AnswerPlace(unescape_formula(study), prompt_id, context_id, rollout, probability)
    return LabelledAnswer(unescape_formula(prompt), unescape_formula(answer), label, place.study, place)


def study_labels(study: Study, rows: Iterable[LabelledAnswer]) -> list[StudyLabel]:
    """Return a study's labels, each answer once; JudgeError for an unknown answer, and two labels of one."""
    flips = [(trial.context.context_id, flip) for trial in study.trials for flip in trial.harmful_flips]
    known = {(flip.prompt_id, id): flip.rollout_ids[0] for id, flip in flips if flip.rollout_ids}
    base = study.answers_without_context()
    known |= {(flip.prompt_id, ""): base[flip.prompt_id][0] for _, flip in flips if flip.prompt_id in base}
    labels: list[StudyLabel] = []
    by_answer: dict[tuple[str, str], HumanLabel] = {}
    for row in rows:
        if row.place is None or row.place.study != study.name:
            continue
        label = StudyLabel(row.place, row.label)
        name = f"answer to prompt '{row.place.prompt_id}' under context '{row.place.context_id}'"
        if known.get(label.answer) != row.place.rollout_id:
            raise JudgeError(
                f"the labels name an {name} that study '{study.name}' does not have; is it another study of that name? "
                "Run `flipsearch judge label` again."
            )
        if row.label and by_answer.setdefault(label.answer, row.label) != row.label:
            both = f"{by_answer[label.answer]} and {row.label}"
            raise JudgeError(f"the {name} is labelled both {both}; settle it, and give each answer one label.")
        labels.append(label)
    return merge_labels(labels)


def merge_labels(*samples: Iterable[Labelled]) -> list[Labelled]:
    """Return several samples as one: each sampled answer once, with its highest probability and its last label."""
    merged: dict[object, Labelled] = {}
    for number, row in enumerate(chain.from_iterable(samples)):
        key = (row.place.study, row.place.prompt_id, row.place.context_id) if row.place else number
        if row.place and (before := merged.get(key)) and before.place:
            place = max(before.place, row.place, key=lambda place: place.probability)
            row = replace(row, label=row.label or before.label, place=place)
        merged[key] = row
    return list(merged.values())


MIN_ERROR = 0.01
"""Least chance of an error that a judge is credited with, so that every prompt can be sampled."""


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
    text_of = {prompt.prompt_id: prompt.judged.text for prompt in prompts}
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
            response = rollout.parts.answer or ""
            place = AnswerPlace(study.name, id, context_id, by_prompt[id], probabilities[id])
            answers.append(AnswerToLabel(text_of[id], response, place, labels.get((id, context_id))))
    return answers


def _rollout_ids(study: Study, num_contexts: int) -> dict[str, dict[str, str]]:
    """Return context id -> prompt id -> rollout id, the answers without context ("") first.

    All have the same prompts: the harmful ones that are scored under each of the best `num_contexts` contexts.
    """
    if not study.has_single_answers:
        raise StudyError(f"study '{study.name}' has several answers per prompt; labels are for one answer each.")
    trials = [trial for trial in study.trials if trial.role == "arm" and trial.state == "complete" and trial.confirmed]
    best = study.best
    if best is None or not trials:
        raise StudyError(f"study '{study.name}' has confirmed no context: there is nothing to label.")
    # The report's own one first, whatever others flip; then those that may be used.
    trials.sort(key=lambda trial: (trial.number != best.number, study.is_over_any_cap(trial)))
    trials = trials[:num_contexts]
    scored = {
        trial.context.context_id: {
            flip.prompt_id: flip.rollout_ids[0]
            for flip in trial.harmful_flips
            if Label.UNSCORED not in (flip.before, flip.after)
        }
        for trial in trials
    }
    shared = [id for id in next(iter(scored.values())) if all(id in by_prompt for by_prompt in scored.values())]
    base = study.answers_without_context()
    return {"": {id: base[id][0] for id in shared}} | {
        context: {id: by_prompt[id] for id in shared} for context, by_prompt in scored.items()
    }


def _doubts(ids: Mapping[str, Mapping[str, str]], verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    """Return a doubt per prompt, the root of its answers' chance of an error: optimal by Neyman allocation."""
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
