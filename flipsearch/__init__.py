"""flipsearch: search the privileged safety context that flips a model's unsafe rollouts.

    import flipsearch
    result = flipsearch.search(model="pocket", num_contexts=64)
    result.best.context.text, result.leaderboard

Importing it loads neither torch nor optuna: the functions load them when they are called.
"""

from importlib import import_module
from typing import Any

from flipsearch.core.errors import FlipsearchError

__version__ = "0.1.0"
_MODULES = {
    **dict.fromkeys(("search", "plan"), "flipsearch.api.studies"),
    **dict.fromkeys(("score", "check", "report", "compare"), "flipsearch.api.scores"),
    **dict.fromkeys(("report_checkpoint", "compare_checkpoints"), "flipsearch.api.scores"),
    **dict.fromkeys(("train", "evaluate"), "flipsearch.api.training"),
    **dict.fromkeys(("plan_train", "preflight", "export"), "flipsearch.api.preflight"),
    **dict.fromkeys(("check_judge", "label_answers", "fit_judge", "stress_judge"), "flipsearch.api.judges"),
    **dict.fromkeys(("check_ledger", "export_ledger"), "flipsearch.api.lookup"),
    "anatomy": "flipsearch.api.preflight",
    "sweep": "flipsearch.api.sweep",
    "chat": "flipsearch.api.chat",
    "doctor": "flipsearch.api.doctor",
    **dict.fromkeys(("SearchResult", "EvaluationResult", "TrainingResult"), "flipsearch.results"),
    **dict.fromkeys(("Context", "Prompt"), "flipsearch.core.records"),
    **dict.fromkeys(("Study", "Trial"), "flipsearch.core.studies"),
    "Scorecard": "flipsearch.core.trainings",
}
__all__ = sorted([FlipsearchError.__name__, *_MODULES])  # spelled out in __init__.pyi, which editors read


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'flipsearch' has no attribute '{name}'")
