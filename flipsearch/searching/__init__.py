"""The search: which contexts to try, how long to race them, and what the sealed prompts say of the best."""

from flipsearch.searching.setup import SearchSetup, prepare_search
from flipsearch.searching.study import run_score, run_study

__all__ = ["SearchSetup", "prepare_search", "run_score", "run_study"]
