"""A measurement after the search is one file: its cost is planned and budgeted, and its result is in the study."""

from dataclasses import replace
from pathlib import Path

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Rate, json_value
from flipsearch.core.studies import StudyKind
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure
from flipsearch.measuring.runner import Runner
from flipsearch.reporting.files import read_study, write_study
from flipsearch.searching import after, prepare_search, run_study
from flipsearch.searching.baseline import SplitBaseline, measure_baseline
from flipsearch.searching.finalists import CompletedSearch, Confirmation, Stage
from flipsearch.searching.plan import Span, plan_search, reserved_rollouts
from flipsearch.searching.setup import SearchSetup
from tests.world import GREEDY, Model, RefusalJudge, context, library, prompt_set

SETUP = prepare_search(SearchConfig(num_contexts=6, first_rung=8, num_finalists=2, breed=0), library(), prompt_set())


class ShoutStage(Stage):
    """Measures the winner in capital letters on the sealed split."""

    name = "shout"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int:
        return len(setup.confirm)

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        sealed, winner = confirmation.base, confirmation.winner
        assert winner
        loud = [context(winner.context.text.upper())]
        [measured] = measure(search.deciding, loud, sealed.prompts, sealed.outcomes, sealed.split)
        ids = confirmation.rollout_ids | measured.rollout_ids
        measures = {**confirmation.measures, self.name: json_value(measured.flip_rate)}
        return replace(confirmation, measures=measures, rollout_ids=ids)


@pytest.fixture
def runner() -> Runner:
    return Runner(Model(), RefusalJudge(), Ledger("sqlite://"), GREEDY)


def test_a_new_stage_is_planned_budgeted_run_and_kept(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, base = plan_search(SETUP), measure_baseline(runner, SETUP.search, "search")
    study, reserved = run_study(SETUP, runner), reserved_rollouts(SETUP, base)
    assert (study.kind, study.measures) == (StudyKind.SEARCH, {})
    monkeypatch.setattr(after, "STAGES", (*after.STAGES, ShoutStage()))
    shouted = run_study(SETUP, runner)
    num_confirm = len(SETUP.confirm)
    assert plan_search(SETUP).rollouts == {**plan.rollouts, "shout": Span(0, num_confirm)}
    assert plan_search(SETUP).total.most == plan.total.most + num_confirm
    assert reserved_rollouts(SETUP, base) == reserved + num_confirm
    assert shouted.num_rollouts == study.num_rollouts + num_confirm
    assert json_value(Rate(0, 32, 0.0, shouted.measures["shout"]["high"])) == shouted.measures["shout"]
    assert replace(shouted, measures={}, num_rollouts=study.num_rollouts, num_tokens=study.num_tokens) == study
    write_study(shouted, tmp_path)
    assert read_study(tmp_path) == shouted


def test_stages_have_unique_names() -> None:
    names = [stage.name for stage in after.STAGES]
    assert len(set(names)) == len(names)
