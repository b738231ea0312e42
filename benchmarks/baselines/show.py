"""Formats figures: when and where they were measured, medians with their range, and whether a claim holds."""

import datetime
import os
import statistics
from collections.abc import Sequence


def header(*more: str) -> str:
    """Return the line with the date and the machine of a benchmark."""
    return ", ".join([str(datetime.date.today()), f"{os.cpu_count()} cores", *more])


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Return the median with the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{scale * middle:,.{digits}f} ({scale * low:,.{digits}f} to {scale * high:,.{digits}f})"


def claim(text: str, *, holds: bool) -> str:
    """Return the line of a claim."""
    return f"{'PASS' if holds else 'FAIL'}  {text}"
