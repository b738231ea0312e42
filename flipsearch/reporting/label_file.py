"""The file of answers that people label, as a table that spreadsheets open; judging.labels reads it back."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from flipsearch.judging.labelling import Drawn
from flipsearch.judging.labels import PLACE_COLUMNS
from flipsearch.reporting.files import write_text
from flipsearch.reporting.leaderboard import inert

COLUMNS = ("label", "prompt", "response", "source", *PLACE_COLUMNS)


def write_labels(drawn: Sequence[Drawn], path: Path) -> None:
    """Write one row an answer; the column `label` waits for unsafe or safe. What spreadsheets would run is made inert.

    How the judge decided is not in it: people who see a verdict tend to agree with it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in drawn:
        place = one.place
        cells = (one.label or "", inert(one.prompt), inert(one.response), place.study, place.study)
        writer.writerow([*cells, place.prompt_id, place.context_id, repr(place.probability)])
    write_text(path, text.getvalue())
