"""The data that the scripts of the leaderboard page read: its rows, which context flips which prompt, and the answers.

All texts are hostile. They travel as gzip in base64, which no text can leave, and the scripts show them as text alone.
"""

import base64
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from pydantic_core import to_json

from flipsearch.core.measurements import Measurement
from flipsearch.core.records import Label, Rollout, Verdict
from flipsearch.core.studies import Study, Trial
from flipsearch.ledger import Ledger
from flipsearch.reporting.columns import Column
from flipsearch.reporting.format import Cell, context_cell, duration, names_of, standing, visible, word_changes
from flipsearch.reporting.study_file import FINISHED, context_card

"""Key of the ledger's note of when a study's files were first written with so many rollouts."""
MOST_TEXT = 12_000_000
"""Characters of all answers on a page; where there are more, the longest are cut."""
LONGEST_TEXT = 8_000
"""Characters of one thought or answer at most."""
MOST_CONTEXTS = 16
"""Contexts whose answers are on the page, the first and the placebos."""
NUM_STATIC = 12
"""Rows beside the placebos that are in the page itself, for readers without scripts."""
_BATCH = 256


def packed(value: Any) -> str:
    """Return JSON-able data as the page holds it; characters that hide or reorder others are marked."""
    return base64.b64encode(gzip.compress(to_json(_visible(value)), compresslevel=9, mtime=0)).decode("ascii")


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {key: _visible(inner) for key, inner in value.items()}
    return [_visible(inner) for inner in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class StudyTimes:
    """When a study was finished."""

    date: str
    took: str
    """From its first moment to its last, pauses included."""


@dataclass(frozen=True, slots=True)
class PageRow:
    """One context on the page."""

    trial: Trial
    name: str
    cells: tuple[Cell, ...]
    style: str
    """What the row looks like: winner, tie, placebo, or the state of its trial."""


def page_rows(study: Study, columns: Sequence[Column]) -> list[PageRow]:
    """Return the rows of the leaderboard, in the order of the study."""
    names, rows = names_of(study), []
    for trial in study.trials:
        name = names[trial.number]
        cells = (
            context_cell(trial, study, name) if column.name == "context" else column.cell(study, trial)
            for column in columns
        )
        stands = standing(trial, study)
        style = "winner" if stands == "winner" else "placebo" if trial.role == "placebo" else trial.state
        rows.append(PageRow(trial, name, tuple(cells), style))
    return rows


def static_rows(rows: Sequence[PageRow]) -> list[PageRow]:
    """Return the rows that are in the page itself: the first, all finalists and all placebos."""
    return [row for i, row in enumerate(rows) if i < NUM_STATIC or row.trial.confirm or row.trial.role == "placebo"]


def table_data(study: Study, columns: Sequence[Column], rows: Sequence[PageRow]) -> dict[str, Any]:
    """Return what the script of the table shows, searches and sorts by."""
    by_id = {trial.context.context_id: trial for trial in study.trials}
    categories = {prompt.prompt_id: prompt.category or "no category" for prompt in study.prompts}
    entries = []
    for row in rows:
        context = row.trial.context
        parent = by_id.get(context.parents[0]) if context.parents else None
        changes = word_changes(parent.context.text, context.text) if parent else ()
        entries.append(
            {
                "id": context.context_id,
                "name": row.name,
                "cells": [[c.text, c.small, c.sort, c.bars, c.whisker, c.warns] for c in row.cells],
                "style": row.style,
                "state": row.trial.state if row.trial.role == "arm" else "placebo",
                "origin": context.operator or context.template or "text",
                "place": context.placement,
                "over": study.is_over_any_cap(row.trial),
                "final": row.trial.confirm is not None,
                "text": context.text,
                "params": ", ".join(f"{key} = {value}" for key, value in context.params),
                "parents": list(context.parents),
                "change": [[change.kind, change.words] for change in changes],
                "categories": _by_category(row.trial.final, categories),
                "card": context_card(study, row.trial) if row.trial.confirm and row.trial.role == "arm" else None,
            }
        )
    prompts = [[prompt.text, prompt.kind, prompt.category, prompt.split or ""] for prompt in study.prompts]
    heads = [[column.name, column.page, column.is_extra] for column in columns]
    return {"study": study.name, "columns": heads, "rows": entries, "prompts": prompts, "matrix": _matrix(study)}


def _by_category(measured: Measurement, categories: Mapping[str, str]) -> list[list[Any]]:
    """Return (category, flips, prompts that could flip), most prompts first; nothing where all are of one category."""
    flips: dict[str, list[bool]] = defaultdict(list)
    for id, flipped in measured.flipped_by_prompt.items():
        flips[categories.get(id, "no category")].append(flipped)
    ordered = sorted(flips.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [[category, sum(flipped), len(flipped)] for category, flipped in ordered] if len(ordered) > 1 else []


def _matrix(study: Study) -> dict[str, Any]:
    """Return for each trial what becomes of each prompt that is unsafe without a context; those that most saw first.

    A letter is a prompt: f flips, u stays unsafe, x is unscored, . was not answered under this context.
    """
    letters = {Label.SAFE: "f", Label.UNSAFE: "u", Label.UNSCORED: "x"}
    outcomes = [
        {
            flip.prompt_id: letters[flip.after]
            for flip in trial.search.flips
            if flip.kind == "harmful" and flip.before is Label.UNSAFE
        }
        for trial in study.trials
    ]
    seen = Counter(id for outcome in outcomes for id in outcome)
    flipped = Counter(id for outcome in outcomes for id, letter in outcome.items() if letter == "f")
    place = {prompt.prompt_id: index for index, prompt in enumerate(study.prompts)}
    ids = sorted((id for id in seen if id in place), key=lambda id: (-seen[id], -flipped[id], place[id]))
    return {
        "prompts": [place[id] for id in ids],
        "rows": ["".join(outcome.get(id, ".") for id in ids) for outcome in outcomes],
    }


def study_times(study: Study, ledger: Ledger) -> StudyTimes | None:
    """Return when a study was begun and its files first written; None for a ledger that does not say."""
    notes = ledger.notes()
    finished = notes.get(FINISHED.format(study.num_rollouts))
    if finished is None:
        return None
    first, last = (datetime.fromisoformat(note.time) for note in (next(iter(notes.values())), finished))
    return StudyTimes(f"{last:%d %B %Y}".lstrip("0"), duration((last - first).total_seconds()))


def answers_data(study: Study, ledger: Ledger) -> dict[str, Any] | None:
    """Return the answers of finalists and placebos beside those without a context; None if the ledger has none of them.

    Of several samples the first is shown that has the prompt's label.
    """
    place = {prompt.prompt_id: index for index, prompt in enumerate(study.prompts)}
    shown = [trial for trial in study.trials if trial.confirm or trial.role == "placebo"]
    if not any(trial.confirm for trial in study.trials):
        shown = [*study.trials[:NUM_STATIC], *(trial for trial in study.trials[NUM_STATIC:] if trial.role == "placebo")]
    shown = sorted(shown, key=lambda trial: trial.role == "placebo")[:MOST_CONTEXTS]
    flips = {
        trial.number: [
            flip for measured in (trial.search, trial.confirm) if measured for flip in measured.flips
            if flip.prompt_id in place
        ]
        for trial in shown
    }  # fmt: skip
    without = dict.fromkeys(place, ()) | study.answers_without_context()
    wanted = {id for of_trial in flips.values() for flip in of_trial for id in without[flip.prompt_id]}
    wanted |= {id for of_trial in flips.values() for flip in of_trial for id in flip.rollout_ids}
    answers = dict(_answers(ledger, sorted(wanted)))
    if not answers:
        return None
    place_of_answer = {id: index for index, id in enumerate(answers)}

    def chosen(ids: Sequence[str], label: Label) -> int | None:
        """Return the place of the first answer with the prompt's label, or else of the first."""
        known = [id for id in ids if id in answers]
        alike = [id for id in known if any(v.label is label for v in answers[id][1].values())]
        return place_of_answer[(alike or known)[0]] if known else None

    pairs = {
        number: [
            [
                place[flip.prompt_id], flip.before.value, flip.after.value, flip.refused_before, flip.refused_after,
                flip.kind_after, chosen(without[flip.prompt_id], flip.before), chosen(flip.rollout_ids, flip.after),
            ]
            for flip in of_trial
        ]
        for number, of_trial in flips.items()
    }  # fmt: skip
    judges = _judge_names(study, {judge for _, verdicts in answers.values() for judge in verdicts})
    most = _longest(answers.values())
    return {
        "contexts": [[study.trials.index(trial), pairs[trial.number]] for trial in shown],
        "answers": [_entry(rollout, verdicts, list(judges), most) for rollout, verdicts in answers.values()],
        "judges": list(judges.values()),
        "cut": most,
        "samples": study.settings.get("samples", 1),
    }


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """A prompt with its answers without a context and under the best one."""

    title: str
    prompt: str
    before: str
    after: str
    is_flip: bool


def examples_of(study: Study, best: Trial, data: Mapping[str, Any]) -> list[AnswerExample]:
    """Return a flip and a failure of the best context, for the page itself; `data` is that of `answers_data`."""
    pairs = dict(data["contexts"]).get([trial.number for trial in study.trials].index(best.number), ())
    examples = []
    for title, after in (("A flip", Label.SAFE), ("A failure", Label.UNSAFE)):
        for place, was, became, *_, first, second in pairs:
            if (was, became) == (Label.UNSAFE, after) and first is not None and second is not None:
                under, without = (data["answers"][index][1] or "(no answer)" for index in (second, first))
                prompt = study.prompts[place].text
                examples.append(AnswerExample(title, prompt, without, under, after is Label.SAFE))
                break
    return examples


Answer = tuple[tuple[str, str | None, str], dict[str, Verdict]]
"""Thought, answer and finish reason, and the verdict of each judge by its identity."""


def _answers(ledger: Ledger, ids: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    """Yield the texts and verdicts of rollouts, few at a time: their tokens can take much more memory than they do."""
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        verdicts = ledger.verdicts_by_judge(batch)
        for id, rollout in ledger.rollouts(batch, errors=True).items():
            yield id, (_texts(rollout), verdicts.get(id, {}))


def _texts(rollout: Rollout) -> tuple[str, str | None, str]:
    if rollout.finish_reason == "error":
        return "", f"(failed: {rollout.error})", "error"
    parts = rollout.parts
    return parts.thought, parts.answer, rollout.finish_reason


def _longest(answers: Iterable[Answer]) -> int:
    """Return how many characters of a text are shown, so that all together fit on the page."""
    lengths = [len(text or "") for texts, _ in answers for text in texts[:2]]
    most = LONGEST_TEXT
    while most > 200 and sum(min(length, most) for length in lengths) > MOST_TEXT:
        most //= 2
    return most


def _entry(
    texts: tuple[str, str | None, str], verdicts: Mapping[str, Verdict], judges: Sequence[str], most: int
) -> list[Any]:
    """Return an answer for the page: thought, answer, how it ended, and each verdict, the deciding judge's first."""
    thought, answer, ending = texts
    said = [
        [judges.index(id), v.label.value, v.p_unsafe, v.p_refusal, v.kind, v.reason[:400]] for id, v in verdicts.items()
    ]
    is_cut = max(len(thought), len(answer or "")) > most
    return [thought[:most], None if answer is None else answer[:most], ending, is_cut, sorted(said, key=itemgetter(0))]


def _judge_names(study: Study, identities: set[str]) -> dict[str, str]:
    """Return the judges whose verdicts are shown, the deciding one first, with their names where the study has them."""
    names = {study.judge_id: study.settings.get("judge"), study.confirm_judge_id: study.settings.get("confirm_judge")}
    known = [id for id in (study.last_judge_id, study.judge_id) if id in identities]
    ordered = dict.fromkeys([*known, *sorted(identities)])
    return {id: str(names.get(id) or id) for id in ordered}
