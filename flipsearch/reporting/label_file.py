"""The file of answers that people label, as a table that spreadsheets open; judging.labels reads it back."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from flipsearch.judging.labelling import Drawn
from flipsearch.judging.labels import PLACE_COLUMNS
from flipsearch.prompts.spreadsheets import guarded
from flipsearch.reporting.files import write_text

COLUMNS = ("label", "prompt", "response", *PLACE_COLUMNS)
MARK = "\ufeff"
"""At the start of the file: without it spreadsheets read UTF-8 as something else, and spoil the texts on saving."""
_UNREADABLE = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""Characters that no text file can hold."""


def write_labels(drawn: Sequence[Drawn], path: Path) -> None:
    """Write one row an answer; the column `label` waits for unsafe or safe. What spreadsheets would run is made inert.

    How the judge decided is not in it: people who see a verdict tend to agree with it.
    """
    text = io.StringIO()
    # All quoted: Python leaves a lone carriage return bare, and readers would end the row there.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for one in drawn:
        place = one.place
        cells = (one.label or "", guarded(one.prompt), guarded(one.response), guarded(place.study))
        ids = map(_kept, (place.prompt_id, place.context_id, place.rollout_id))
        writer.writerow([*cells, *ids, repr(place.probability)])
    write_text(path, MARK + text.getvalue().translate(_UNREADABLE))


def _kept(id: str) -> str:
    """An id that no spreadsheet takes for a number, as it would 12345678e1234567: judging.labels undoes that."""
    return f"'{id}" if re.fullmatch(r"\d+(e\d+)?", id) else id
