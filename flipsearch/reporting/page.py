"""The study as leaderboard.html: no scripts, no network, every text escaped, long texts folded.

The tables follow reporting/columns.py; the templates hold the words. Also renders the page of a training.
"""

from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined

from flipsearch.core.studies import Study, StudyKind
from flipsearch.reporting import format
from flipsearch.reporting.card import ORACLE
from flipsearch.reporting.columns import Section, columns_of


def leaderboard_page(study: Study) -> str:
    """Return leaderboard.html for a study."""
    columns = columns_of(study, "page")
    return render(
        "leaderboard.html",
        study=study,
        columns={section: [c for c in columns if c.section == section] for section in get_args(Section)},
        settings=format.setting_rows(study.settings),
        is_search=study.kind is StudyKind.SEARCH,
        oracle=ORACLE,
        shared_errors=format.SHARED_ERRORS,
    )


def render(template: str, **values: Any) -> str:
    """Return a page made of a template: every value is escaped, and an unknown name is an error."""
    jinja = Environment(
        loader=PackageLoader("flipsearch.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=format.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = (format.percent, format.points, format.low_high, format.interval)
    jinja.filters |= {function.__name__: function for function in figures} | {"tenth": "{:.1f}".format}
    return jinja.get_template(template).render(values)
