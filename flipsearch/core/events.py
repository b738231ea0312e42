"""What happened in a study, as it happened: events.jsonl, one JSON object per line, appended by each launch.

    {"time": "2026-11-24T21:00:00.123+00:00", "event": "pruned", "context_id": "…", "rung": 1, "evidence": 31.4}

It is for people and their scripts: nothing here reads it, and no result depends on it. A run that is replayed from
the ledger emits its events again, under a new "launch".
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from flipsearch.core.errors import StudyError


class Emit(Protocol):
    """Records an event with its facts, which JSON can hold."""

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Record the event."""
        ...


def silent(event: str, /, **facts: Any) -> None:
    """Discard the event."""


class Events:
    """Appends events to a file; StudyError if it cannot be written.

    Each line is written in one call. A line that a kill or a full disk left incomplete is terminated before the next
    one, so that it spoils only itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_checked = False

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Append one line with the time in UTC."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | facts, default=str) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(self._line_break().encode() + line.encode("ascii"))
        except OSError as error:
            why = f"cannot write '{self.path}': {error.strerror}"
            raise StudyError(f"{why}; free the disk or move the file away.") from error

    def _line_break(self) -> str:
        """Return a line break if an earlier launch left the last line incomplete; checked once."""
        if self._is_checked:
            return ""
        self._is_checked = True
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                return ""
            file.seek(-1, 2)
            return "" if file.read(1) == b"\n" else "\n"
