"""The search: which contexts to try, how long to race them, and what the sealed prompts say of the best."""

from flipsearch.searching.plan import Plan, plan_study
from flipsearch.searching.study import run_study

__all__ = ["Plan", "plan_study", "run_study"]
