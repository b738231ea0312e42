"""The search: which contexts to try, how long to race them, and what the sealed prompts say of the best."""

from flipsearch.searching.plan import Budget, SearchPlan, plan_search
from flipsearch.searching.setup import START, SearchSetup, prepare_search
from flipsearch.searching.study import run_score, run_study, write_storage

__all__ = [
    "START", "Budget", "SearchPlan", "SearchSetup", "plan_search", "prepare_search", "run_score", "run_study",
    "write_storage",
]  # fmt: skip
