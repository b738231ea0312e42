"""What a user sees of a command at work: a share of the whole, and never a long silence."""

import io
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from flipsearch.commands.console import ProgressDisplay, WorkState
from flipsearch.core.progress import Activity, Phase, Step, announce, announced_to
from flipsearch.searching.plan import Span
from flipsearch.statistics.intervals import wilson

PLAN: Any = SimpleNamespace(
    rollouts={
        "baseline": Span(100, 100),
        "placebos": Span(100, 100),
        "race": Span(100, 900),
        "confirm": Span(200, 200),
    },
    budget_tokens=None,
    time_s=None,
)


def state_of(plan: Any) -> tuple[WorkState, list[float]]:
    now = [0.0]
    state = WorkState(clock=lambda: now[0])
    state.plan = plan
    return state, now


def test_the_share_grows_with_the_rollouts_and_never_falls() -> None:
    state, _ = state_of(PLAN)
    shares: list[float] = []
    for phase, total in ((Phase.BASELINE, 100), (Phase.PLACEBO, 100), (Phase.RACE, 150), (Phase.RACE, 150)):
        for done in (0, total // 2, total):
            state.update(Step(phase, detail=str(len(shares) // 3)), done, total, 0)
            state.update(Step(phase, activity=Activity.JUDGING), done, total, 0)
            shares.append(state.share or 0.0)
    state.update(Step(Phase.FINALISTS), 100, 200, 0)
    shares.append(state.share or 0.0)
    state.update(Step(Phase.FINALISTS), 200, 200, 0)
    shares.append(state.share or 0.0)
    assert shares == sorted(shares)
    assert 0.1 < shares[2] < 0.2  # 100 of 100 + 100 + some 300 + 200
    assert 0.75 < shares[-2] < 0.9
    assert 0.95 < shares[-1] < 1


def test_time_left_best_and_budget_are_said() -> None:
    state, now = state_of(SimpleNamespace(**vars(PLAN) | {"budget_tokens": 10_000}))
    step = Step(Phase.RACE, best=wilson(12, 16))
    state.update(replace(step, study_tokens=1_000), 10, 100, 1_000)
    assert not any("left" in text for text in state.figures() if "budget" not in text)
    now[0] = 10.0
    state.update(replace(step, study_tokens=5_500), 60, 100, 5_500)
    assert state.share is not None
    assert state.share >= 0.55
    line = state.line()
    assert "450 tokens/s" in line
    assert "best 75% of 16" in line
    assert "budget left 4,500 tokens" in line
    assert "s left" in line


def test_another_model_that_counts_from_zero_has_a_speed_of_its_own() -> None:
    state, now = state_of(None)
    step = Step(Phase.EVALUATION, "new model")
    for seconds, num_tokens in ((0.0, 100), (10.0, 1_100)):
        now[0] = seconds
        state.update(step, 1, 2, num_tokens)
    assert "100 tokens/s" in state.line()
    state.update(replace(step, detail="base model"), 0, 2, 0)
    assert "tokens/s" not in state.line()
    for seconds, num_tokens in ((20.0, 50), (30.0, 550)):
        now[0] = seconds
        state.update(replace(step, detail="base model"), 1, 2, num_tokens)
    assert "50 tokens/s" in state.line()


def test_where_nothing_happens_a_line_says_where_the_command_is() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=80), silent_s=0.02)
    with display.shown():
        display(Step(Phase.LOADING, "some-model"), 0, 0, 0, 0)
        deadline = time.monotonic() + 20
        while stream.getvalue().count("loading some-model") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().count("loading some-model") >= 3


def test_what_is_done_where_nothing_is_counted_is_said() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=80), silent_s=0.02)
    with display.shown(), announced_to(display.announce):
        for work in ("loading the weights", "checking the chat template"):
            announce(work)
            deadline = time.monotonic() + 20
            while work not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
        display(Step(Phase.BASELINE), 1, 4, 1, 1)
        assert "checking" not in display.state.line()
    assert "loading the weights" in stream.getvalue()
    assert "checking the chat template" in stream.getvalue()


def test_a_fast_run_prints_few_lines_and_no_escapes() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=80))
    with display.shown():
        display.state.plan = cast(Any, PLAN)
        for done in range(101):
            display(Step(Phase.BASELINE, status="\x1b[31mwaits"), done, 100, done, done)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 3
    assert "\x1b" not in stream.getvalue()
