"""The files of a preflight: its page and its record. Every text is escaped."""

from pathlib import Path
from typing import TYPE_CHECKING

from flipsearch.core.files import json_text, write_text
from flipsearch.reporting.format import setting_rows
from flipsearch.reporting.pages import render

if TYPE_CHECKING:  # which loads torch
    from flipsearch.training.preflight import Preflight

CHECK_STATES = {"met": "met", "doubt": "in doubt", "failed": "failed"}
BOXES = ("unsafe without the context", "flips", "net of neutral text", "depth", "memory", "time")
"""Criteria whose figures stand at the top of the page."""


def write_preflight(result: "Preflight", folder: Path) -> None:
    """Write preflight.json and preflight.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "preflight.json", json_text(result.as_dict()))
    write_text(folder / "preflight.html", preflight_page(result))


def preflight_page(result: "Preflight") -> str:
    """Return preflight.html."""
    figures = {check.name: check for check in result.checks}
    split = {name: figures[name].value.partition(" (") for name in BOXES}
    return render(
        "preflight.html",
        result=result,
        headline=[
            (name, value, f"({more}" if more else figures[name].wanted) for name, (value, _, more) in split.items()
        ],
        states=CHECK_STATES,
        source=f"the study {result.figures.study}" if result.figures.study else "the sample",
        settings=setting_rows(dict(result.settings)),
    )
