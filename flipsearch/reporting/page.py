"""A study as one HTML page: no scripts, no network, every text escaped, long texts folded."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flipsearch.core.records import Estimate, Rate
from flipsearch.core.studies import Study
from flipsearch.reporting.card import ORACLE
from flipsearch.reporting.columns import depths, is_search

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\t\n\r"))
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_SURROGATES = range(0xD800, 0xE000)  # they cannot be written to a file
_HIDDEN = dict.fromkeys([*_CONTROLS, *_REORDERING, *_SURROGATES], "\ufffd")


def leaderboard_page(study: Study) -> str:
    """Return leaderboard.html for a study."""
    return (
        environment()
        .get_template("leaderboard.html")
        .render(
            study=study,
            settings=shown_settings(study.settings),
            is_search=is_search(study),
            depths=depths(study),
            oracle=ORACLE,
        )
    )


def visible(value: Any) -> Any:
    """Return a text with a mark for each character that would hide or reorder what stands around it."""
    return value.translate(_HIDDEN) if isinstance(value, str) else value


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal, or a dash if it was not measured."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Return a difference of fractions in percentage points, signed."""
    return f"{100 * value:+.1f}"


def interval(rate: Rate) -> str:
    """Return a rate's interval and size in words."""
    return f"{100 * rate.low:.1f}–{100 * rate.high:.1f} % (95 %), {rate.count} of {rate.n}"


def span(estimate: Estimate) -> str:
    """Return an estimate's interval and size in words."""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f} % (95 %), n = {estimate.n:,}"


def shown_settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that have a value, sorted by name; those inside others as "outer.inner"."""
    found: list[tuple[str, str]] = []
    for key, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            found += [(f"{key}.{inner}", text) for inner, text in shown_settings(value)]
        elif isinstance(value, list | tuple):
            found += [(key, ", ".join(map(str, value)))] if value else []
        elif value not in (None, ""):
            found.append((key, str(value)))
    return found


def environment() -> Environment:
    """Return Jinja's environment of all pages: every value is escaped, and an unknown name is an error."""
    found = Environment(
        loader=PackageLoader("flipsearch.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": percent,
        "points": points,
        "interval": interval,
        "span": span,
        "tenth": "{:.1f}".format,
    }
    return found
