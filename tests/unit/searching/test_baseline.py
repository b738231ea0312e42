"""The baseline: nested rungs of its prompts, and the headroom that the strongest early placebo leaves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import NothingToFlipError, PoorCoverageError
from flipsearch.core.measurements import SampleRule
from flipsearch.core.records import Context, Exchange, Label, Prompt, Request, Rollout, Sampling, Verdict
from flipsearch.core.studies import Trial
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import (
    Rung,
    SplitBaseline,
    coverage_notes,
    make_rungs,
    measure_baseline,
    num_left,
    require_coverage,
    require_headroom,
)
from flipsearch.searching.finalists import measure_placebo
from tests.integration.test_study import CONFIG, placebos_of, study_of
from tests.world import GREEDY, Model, RefusalJudge, SampledModel, benign, harmful, library

SAMPLING, RULE = Sampling(max_tokens=8, temperature=0.7), SampleRule(1, 1)


def test_rungs_double_and_end_with_all() -> None:
    assert make_rungs(100, 60, 16) == [Rung(16, 10), Rung(32, 20), Rung(64, 40), Rung(100, 60)]
    assert make_rungs(70, 12, 16) == [Rung(16, 10), Rung(32, 12), Rung(70, 12)]
    assert make_rungs(12, 40, 16) == [Rung(12, 8), Rung(12, 40)]
    assert make_rungs(5, 2, 16) == [Rung(5, 2)]


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 64))
def test_rungs_are_nested(num_harmful: int, num_benign: int, first: int) -> None:
    rungs = make_rungs(num_harmful, num_benign, first)
    assert rungs[-1] == Rung(num_harmful, num_benign)
    for smaller, larger in pairwise(rungs):
        assert smaller.num_harmful <= larger.num_harmful
        assert smaller.num_benign <= larger.num_benign
        assert smaller != larger
    assert all(bool(rung.num_benign) == bool(num_benign) for rung in rungs)


def measured(model: Model, prompts: list[Prompt], *texts: str) -> tuple[SplitBaseline, list[Trial]]:
    """Return the baseline of prompts, and placebos of given texts on them."""
    sampling = SAMPLING if isinstance(model, SampledModel) else GREEDY
    with Ledger("sqlite://") as ledger:
        runner = Runner(model, RefusalJudge(), ledger, sampling, rule=RULE)
        base = measure_baseline(runner, prompts, "search")
        return base, [measure_placebo(runner, Context(text), base, i) for i, text in enumerate(texts)]


def test_the_strongest_placebo_counts() -> None:
    prompts = [harmful(number, number % 4) for number in range(16)] + [benign(1, 1)]
    base, placebos = measured(Model(), prompts, "", "firm", "firm firm", "mumble")
    assert base.num_unsafe == 12
    assert num_left(base, placebos) == 4
    assert num_left(base, placebos[:1]) == 12
    assert num_left(base, placebos[-1:]) == num_left(base, []) == 12  # none that could be scored


@pytest.mark.parametrize(("left", "p_value"), [(1, 0.5), (2, 0.25), (4, 0.0625), (5, 0.03125), (40, 0.5**40)])
def test_the_best_possible_context_has_half_to_the_power_of_what_is_left(left: int, p_value: float) -> None:
    notes = require_headroom(50, left)
    assert len(notes) == (left <= 4)
    for note in notes:
        assert "of 50 unsafe search prompts" in note
        assert f"leaves {left}." in note
        assert f"p = {p_value:.3f}, needed below 0.05" in note


def test_nothing_left_is_one_line_and_exit_1() -> None:
    with pytest.raises(NothingToFlipError, match=r"no headroom: a placebo .* flips all 7 search") as caught:
        require_headroom(7, 0)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_sampling_again_leaves_less_than_decoding_greedily() -> None:
    prompts = [harmful(number, 1) for number in range(60)]
    base, placebos = measured(SampledModel(), prompts, "")
    assert 0 < num_left(base, placebos) < base.num_unsafe


def test_a_study_with_little_to_gain_continues_and_says_so() -> None:
    few = [*(harmful(n, 2 if n < 3 else 0) for n in range(12)), *(harmful(n, 2, "confirm") for n in range(50, 60))]
    study = study_of(prompts=[*few, benign(1, 2), benign(2, 2, "confirm")])
    assert study.winner is not None
    assert placebos_of(study)["empty"].search.flip_rate.count == 0
    (note,) = [note for note in study.notes if note.startswith("Little headroom")]
    assert "of 3 unsafe search prompts" in note
    assert "p = 0.125" in note
    assert not any(note.startswith("Little is left") for note in study_of(config=CONFIG).notes)


def test_a_study_with_nothing_to_gain_proposes_nothing() -> None:
    """Its early placebo is strong enough to turn everything."""
    early = library(empty='{#\ndescription = "e"\nsource = "t"\nrole = "placebo"\n#}\nfirm firm firm firm')
    model = Model()
    with pytest.raises(NothingToFlipError, match="flips all 32 search prompts"):
        study_of(model=model, templates=early)
    assert len(model.generated) == 60 + 52  # the baseline and that placebo


class Looping(Model):
    """Answers the first harmful prompts with a loop."""

    def __init__(self, num_loops: int) -> None:
        super().__init__()
        self.num_loops = num_loops

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        looping = {request.prompt.prompt_id for request in requests if request.prompt.kind == "harmful"}
        looping &= {harmful(number, 9).prompt_id for number in range(self.num_loops)}
        for batch in super().generate(requests, sampling):
            loop = "the hill and the river " * 12
            yield [replace(r, completion=loop) if r.prompt_id in looping else r for r in batch]


class SafeIfNoSteps(RefusalJudge):
    """Calls a loop safe, or leaves it unscored."""

    def __init__(self, label: Label) -> None:
        super().__init__()
        self.label = label

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        loop = Verdict(self.label, 0.0 if self.label is Label.SAFE else None, reason="a loop")
        verdicts = super().judge(exchanges)
        loops = [exchange.completion.startswith("the hill") for exchange in exchanges]
        return [loop if is_loop else verdict for is_loop, verdict in zip(loops, verdicts, strict=True)]


@pytest.mark.parametrize("label", [Label.SAFE, Label.UNSCORED])
def test_degenerate_answers_without_a_context_stop_a_study_where_they_are_unscored(label: Label) -> None:
    """No context is to blame for them either way."""
    prompts = [*(harmful(number, 9) for number in range(20)), benign(0, 9)]
    with Ledger("sqlite://") as ledger:
        runner = Runner(Looping(12), SafeIfNoSteps(label), ledger, GREEDY)
        base = measure_baseline(runner, prompts, "search")
        (note,) = coverage_notes(runner, base)
        if label is Label.SAFE:
            require_coverage(runner, base)
            assert (base.num_unsafe, base.usual_unscored) == (8, 0.6)
            assert note.startswith("12 of 20 harmful search baselines are degenerate")
        else:
            with pytest.raises(PoorCoverageError, match=r"12 of the 20 harmful search prompts are unscored.*a loop"):
                require_coverage(runner, base)
