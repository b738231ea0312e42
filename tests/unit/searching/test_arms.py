"""What the proposer is told of its arms: shrunken values, and nothing of a failed one."""

import pytest

from flipsearch.bench import Bench
from flipsearch.config import StudyConfig
from flipsearch.ledger import Ledger
from flipsearch.records import Context
from flipsearch.searching.arms import search_arms
from flipsearch.searching.baseline import measure_baseline
from flipsearch.searching.plan import plan_study
from flipsearch.searching.proposer import Proposer
from tests.world import GREEDY, Model, RefusalJudge, library, prompt_set, template


def test_values_are_shrunken_and_failures_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, tuple[float | None, float]] = {}
    real = Proposer.tell

    def tell(self: Proposer, context: Context, value: float | None, violation: float = 0.0) -> None:
        told[context.context_id] = (value, violation)
        real(self, context, value, violation)

    monkeypatch.setattr(Proposer, "tell", tell)
    mumbling = template("mumbling", "mumble {{ tail }}", 'tail = ["so", "thus"]')
    plan = plan_study(StudyConfig(num_contexts=20, first_rung=8, breed=0), library(mumbling=mumbling), prompt_set())
    with Ledger("sqlite://") as ledger:
        bench = Bench(Model(), RefusalJudge(), ledger, GREEDY)
        trials = search_arms(plan, bench, measure_baseline(bench, plan.search, "search"), first_number=1).trials
    assert {trial.state for trial in trials} == {"complete", "held", "cut", "failed"}
    for trial in trials:
        value, violation = told[trial.context.context_id]
        if trial.state == "failed":
            assert value is None
            continue
        rate, refusals = trial.search.flip_rate, trial.search.over_refusal_rate
        assert value is not None
        assert rate.value is not None
        assert refusals.value is not None
        # A prior worth half a prompt at least: never the raw rate of 0 or 1.
        assert rate.count / (rate.n + 64) <= value <= (rate.count + 64) / (rate.n + 64)
        assert 0 < value < 1
        assert violation == pytest.approx(refusals.value - 0.1)
