"""The notes of a result by kind: what the numbers cannot show, how they were made, and facts."""

import re
from collections.abc import Mapping
from typing import Literal

from flipsearch.core.studies import Study
from flipsearch.core.trainings import Scorecard, TrainingRun

NoteKind = Literal["warning", "fact", "method"]
WARNING = re.compile(
    r"alarm|poor|few |little|cannot|could not|not known|not measured|not applied|not checked|does not|degenerate"
    r"|were cut|withheld|above|there is no|only deceive|no reader does|unscored|placebo flips",
    re.IGNORECASE,
)
METHOD = re.compile(
    r"screened|stopped early|sampled|rows of one|group|system role|unpacked|decoded|chat template|scored on every|seed",
    re.IGNORECASE,
)


def note_kind(note: str, usual: NoteKind = "fact") -> NoteKind:
    """Return whether a note warns of what the numbers cannot show, says how they were made, or is as `usual`."""
    if WARNING.search(note) and not note.startswith("On the "):
        return "warning"
    return "method" if METHOD.search(note) else usual


def notes_by_kind(result: Study | TrainingRun | Scorecard, usual: NoteKind = "fact") -> Mapping[NoteKind, list[str]]:
    """Return the notes of a study, a training or an evaluation by kind."""
    notes: dict[NoteKind, list[str]] = {"warning": [], "fact": [], "method": []}
    for note in result.notes:
        notes[note_kind(note, usual)].append(note)
    return notes
