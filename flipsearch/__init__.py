"""flipsearch: search the privileged safety context that flips a model's unsafe rollouts.

    import flipsearch
    found = flipsearch.search(model="organism", num_contexts=64)
    found.best.context.text, found.leaderboard

Importing it loads neither torch nor optuna: the functions load them when they are called.
"""

from typing import TYPE_CHECKING, Any

from flipsearch.errors import FlipsearchError
from flipsearch.records import Context, Prompt
from flipsearch.scores import Scorecard
from flipsearch.studies import Study, Trial

if TYPE_CHECKING:
    from flipsearch.api import (
        check_judge,
        check_ledger,
        evaluate,
        export_ledger,
        fit_judge,
        label_answers,
        plan,
        report,
        score,
        search,
        train,
    )
    from flipsearch.results import Evaluated, Findings, Trained

__version__ = "0.1.0"
__all__ = [
    "Context",
    "Evaluated",
    "Findings",
    "FlipsearchError",
    "Prompt",
    "Scorecard",
    "Study",
    "Trained",
    "Trial",
    "check_judge",
    "check_ledger",
    "evaluate",
    "export_ledger",
    "fit_judge",
    "label_answers",
    "plan",
    "report",
    "score",
    "search",
    "train",
]
_LAZY = {"Evaluated", "Findings", "Trained"} | {name for name in __all__ if name.islower()}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from flipsearch import api

        return getattr(api, name)
    raise AttributeError(f"module 'flipsearch' has no attribute '{name}'")
