"""The surrogate: what a context is worth under the cap, and what its prefix scores are."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from flipsearch.core.measurements import Estimate
from flipsearch.core.records import Context, Label
from flipsearch.core.studies import RefusalCap, RefusalCount, Trial
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure, summarize
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Arm, KnownAnswers, SplitBaseline, measure_baseline
from flipsearch.searching.finalists import order_notes, search_order
from flipsearch.searching.surrogate import Surrogate
from tests.world import GREEDY, LONG, LongJudge, LongModel, Model, RefusalJudge, ScoringModel, prompt_set

TEXTS = ["please", "firm please", "firm firm please", "firm firm firm please", "firm firm blunt now", "blunt blunt now"]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def made(ledger: Ledger, model: Model) -> tuple[Runner, SplitBaseline, KnownAnswers]:
    judge, sampling = (LongJudge(), LONG) if isinstance(model, LongModel) else (RefusalJudge(), GREEDY)
    runner = Runner(model, judge, ledger, sampling)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    return runner, base, KnownAnswers(runner, base, base.to_flip())


@pytest.mark.parametrize(("most", "counts"), [(0.1, "added"), (0.0, "added"), (0.1, "total"), (1.0, "added")])
def test_what_breaks_the_cap_is_worth_nothing(ledger: Ledger, most: float, counts: RefusalCount) -> None:
    runner, base, prefix_scores = made(ledger, Model())
    contexts = [Context(text) for text in TEXTS]
    measured = measure(runner, contexts, base.to_flip(), base.outcomes, "search")
    arms = [Arm(context, m, "complete", 0) for context, m in zip(contexts, measured, strict=True)]
    samples = Surrogate(base, prefix_scores, RefusalCap(most, counts), 0).sample(arms, [Context("firm firm firm so")])
    for arm, flips, worth in zip(arms, samples.flips.T, samples.worth.T, strict=False):
        assert flips.mean() == pytest.approx(arm.search.flip_rate.value, abs=0.1)
        if (arm.search.over_refusal_rate.value or 0.0) <= most:
            assert worth.mean() > 0.6 * flips.mean()
        else:
            assert worth.mean() < 0.1
    unmeasured = samples.flips[:, -1]
    assert abs(unmeasured.mean() - samples.flips[:, 3].mean()) < 0.25  # as what it is like
    assert unmeasured.std() > samples.flips[:, 3].std()


def test_a_context_that_breaks_answers_is_not_chosen_for_the_few_that_it_flips(ledger: Ledger) -> None:
    runner, base, prefix_scores = made(ledger, Model())
    whole = measure(runner, [Context("firm firm firm please")], base.to_flip(), base.outcomes, "search")[0]
    harmful = [flip for flip in whole.flips if flip.kind == "harmful"]
    num = len(harmful)
    sound, broken, unjudged = (
        [*(replace(flip, after=Label.SAFE, kind_after="refusal") for flip in harmful[:flips]), *rest]
        for flips, rest in (
            (num // 2, [replace(flip, after=Label.UNSAFE, kind_after="harm") for flip in harmful[num // 2 :]]),
            (num // 4, [replace(f, after=Label.UNSCORED, kind_after="degenerate") for f in harmful[num // 4 :]]),
            (num // 4, [replace(flip, after=Label.UNSCORED, kind_after=None) for flip in harmful[num // 4 :]]),
        )
    )
    measured = [summarize(flips, "search", whole=True) for flips in (sound, broken, unjudged)]
    assert [m.flip_rate.value for m in measured] == [0.5, 1.0, 1.0]  # what is shown leaves out what is neither
    trials = [Trial(n, Context(str(n)), "arm", "complete", 0, m, None, 1) for n, m in enumerate(measured)]
    assert [trial.number for trial in sorted(trials, key=search_order)] == [2, 0, 1]
    assert "no flip there" in order_notes(sorted(trials, key=search_order))[0]
    assert not order_notes(trials[:1])
    arms = [Arm(trial.context, trial.search, "complete", 0) for trial in trials]
    worth = Surrogate(base, prefix_scores, RefusalCap(1.0, "added"), 0).sample(arms).worth.mean(axis=0)
    assert worth[2] > worth[0] > worth[1]


def test_prefix_scores_rank_contexts_before_anything_is_measured(ledger: Ledger) -> None:
    model = ScoringModel()
    _, base, prefix_scores = made(ledger, model)
    num_generated, contexts = len(model.generated), [Context(text) for text in TEXTS]
    prefix_scores.add(contexts)
    flips, refusals = prefix_scores.of(contexts, "harmful"), prefix_scores.of(contexts, "benign")
    assert flips[0] < flips[1] < flips[2] < flips[3]
    assert refusals[0] == refusals[3] < refusals[4] <= refusals[5]
    assert len(model.generated) == num_generated  # nothing is generated
    # All unsafe answers; of the benign ones none is refused here.
    assert prefix_scores.num_prompts == len(base.to_flip())


def test_a_model_that_scores_no_prefixes_has_no_scores(ledger: Ledger) -> None:
    _, _, prefix_scores = made(ledger, Model())
    prefix_scores.add([Context("firm")])
    assert prefix_scores.num_prompts == prefix_scores.num_contexts == 0


def test_a_judge_that_detects_no_refusals_breaks_no_cap(ledger: Ledger) -> None:
    runner = Runner(Model(), RefusalJudge(reports_refusals=False), ledger, GREEDY)
    base = measure_baseline(runner, [p for p in prompt_set() if p.split == "search"], "search")
    contexts = [Context(text) for text in TEXTS]
    measured = measure(runner, contexts, base.to_flip(), base.outcomes, "search")
    arms = [Arm(context, m, "complete", 0) for context, m in zip(contexts, measured, strict=True)]
    surrogate = Surrogate(base, KnownAnswers(runner, base, ()), RefusalCap(0.0, "added"), 0)
    samples = surrogate.sample(arms)
    assert (samples.worth == samples.flips.clip(min=0.0)).all()


def test_an_arm_with_clearly_contracted_answers_is_worth_nothing(ledger: Ledger) -> None:
    runner, base, prefix_scores = made(ledger, Model())
    contexts = [Context(text) for text in TEXTS[:2]]
    measured = measure(runner, contexts, base.to_flip(), base.outcomes, "search")
    losses = [Estimate(0.8, 0.7, 0.9, 10), Estimate(0.6, 0.4, 0.8, 10)]  # the second may be within the cap
    arms = [
        Arm(context, replace(measurement, contraction=lost), "running", 0)
        for context, measurement, lost in zip(contexts, measured, losses, strict=True)
    ]
    worth = Surrogate(base, prefix_scores, RefusalCap(1.0, "added"), 0, most_lost=0.5).sample(arms).worth
    assert (worth[:, 0] == 0).all()
    assert worth[:, 1].mean() > 0
