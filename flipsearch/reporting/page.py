"""A study as one HTML page: no scripts, no network, every text escaped, long texts folded."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flipsearch.records import Rate, Study
from flipsearch.reporting.leaderboard import is_search


def leaderboard_page(study: Study) -> str:
    """Return leaderboard.html for a study."""
    return (
        _environment()
        .get_template("leaderboard.html")
        .render(study=study, settings=_settings(study.settings), is_search=is_search(study))
    )


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal, or a dash if it was not measured."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Return a difference of fractions in percentage points, signed."""
    return f"{100 * value:+.1f}"


def interval(rate: Rate) -> str:
    """Return a rate's interval and size in words."""
    return f"{100 * rate.low:.1f}–{100 * rate.high:.1f} % (95 %), {rate.count} of {rate.n}"


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in sorted(settings.items()) if value not in (None, (), [], "")]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flipsearch.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "interval": interval}
    return environment
