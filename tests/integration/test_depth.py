"""Flip rate by depth on the pocket model: thinking first flips answers that have begun badly, a bare rule does not."""

from flipsearch.backends.base import make_backend
from flipsearch.config import SearchConfig
from flipsearch.core.settings import make_config
from flipsearch.core.studies import Confirmed, Trial
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import depths_within, measure
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import prompts_of
from flipsearch.searching.after.deciding import measure_depth
from flipsearch.searching.baseline import measure_baseline
from flipsearch.settings import resolve
from flipsearch.templating.library import POCKET_CONTEXTS, load_library

CONFIG = resolve(make_config(SearchConfig, {"max_prompts": 12, "depths": (8, 16, 128)}))


def test_a_context_that_thinks_first_reaches_deeper() -> None:
    prompts = [p for p in prompts_of(CONFIG).prompts if p.split == "confirm" and p.kind == "harmful"][:12]
    contexts = [load_library(shipped=POCKET_CONTEXTS)[name].context() for name in ("constitution", "values")]
    with Ledger("sqlite://") as ledger:
        runner = Runner(make_backend(CONFIG), load_judge("refusal"), ledger, CONFIG.sampling())
        base = measure_baseline(runner, prompts, "confirm")
        measurements = measure(runner, contexts, prompts, base.outcomes, "confirm")
        trials = [
            Trial(number, context, "arm", "complete", 0, measurement, Confirmed(measurement))
            for number, (context, measurement) in enumerate(zip(contexts, measurements, strict=True))
        ]
        measured, ids = measure_depth(runner, base, trials, depths_within(CONFIG.depths, CONFIG.sampling().max_tokens))
        rollouts = ledger.rollouts(ids)
    by_depth = [dict(trial.late.depth) for trial in measured]
    thinks, does_not = ({depth: rate.count for depth, rate in rates.items()} for rates in by_depth)
    assert thinks[0] >= thinks[8] >= thinks[16] > does_not[16] == 0
    assert does_not[8] > 0
    assert by_depth[0][128].n == 0  # no answer of the pocket model is so long
    assert {len(rollout.prefill) for rollout in rollouts.values()} == {8, 16}
    assert all(rollout.completion_ids[: len(rollout.prefill)] == rollout.prefill for rollout in rollouts.values())
