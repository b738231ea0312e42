"""flipsearch: search the privileged safety context that flips a model's unsafe rollouts.

    import flipsearch
    found = flipsearch.search(model="pocket", num_contexts=64)
    found.best.context.text, found.leaderboard

Importing it loads neither torch nor optuna: the functions load them when they are called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flipsearch.core.errors import FlipsearchError

if TYPE_CHECKING:
    from flipsearch.api.doctor import doctor
    from flipsearch.api.judges import check_judge, fit_judge, label_answers, stress_judge
    from flipsearch.api.lookup import check_ledger, export_ledger
    from flipsearch.api.studies import plan, report, score, search
    from flipsearch.api.training import evaluate, train
    from flipsearch.core.records import Context, Prompt
    from flipsearch.core.studies import Study, Trial
    from flipsearch.core.trainings import Scorecard
    from flipsearch.results import EvaluationResult, SearchResult, TrainingResult

__version__ = "0.1.0"
__all__ = [
    "Context",
    "EvaluationResult",
    "FlipsearchError",
    "Prompt",
    "Scorecard",
    "SearchResult",
    "Study",
    "TrainingResult",
    "Trial",
    "check_judge",
    "check_ledger",
    "doctor",
    "evaluate",
    "export_ledger",
    "fit_judge",
    "label_answers",
    "plan",
    "report",
    "score",
    "search",
    "stress_judge",
    "train",
]
_MODULES = {
    **dict.fromkeys(("search", "plan", "score", "report"), "flipsearch.api.studies"),
    **dict.fromkeys(("train", "evaluate"), "flipsearch.api.training"),
    **dict.fromkeys(("check_judge", "label_answers", "fit_judge", "stress_judge"), "flipsearch.api.judges"),
    **dict.fromkeys(("check_ledger", "export_ledger"), "flipsearch.api.lookup"),
    "doctor": "flipsearch.api.doctor",
    **dict.fromkeys(("SearchResult", "EvaluationResult", "TrainingResult"), "flipsearch.results"),
    **dict.fromkeys(("Context", "Prompt"), "flipsearch.core.records"),
    **dict.fromkeys(("Study", "Trial"), "flipsearch.core.studies"),
    "Scorecard": "flipsearch.core.trainings",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'flipsearch' has no attribute '{name}'")
