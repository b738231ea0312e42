"""Flip rate by depth on the pocket model: thinking first turns answers that have begun badly, a bare rule does not."""

from flipsearch.backends.base import make_backend
from flipsearch.config import StudyConfig, make_config
from flipsearch.core.studies import Trial
from flipsearch.defaults import resolve
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import prompts_of
from flipsearch.searching.after.depth import measure_depth
from flipsearch.searching.baseline import measure_baseline
from flipsearch.templating.library import load_library

CONFIG = resolve(make_config(StudyConfig, {"max_prompts": 12, "depths": (8, 16, 128)}))


def test_a_context_that_thinks_first_reaches_deeper() -> None:
    prompts = [p for p in prompts_of(CONFIG).prompts if p.split == "confirm" and p.kind == "harmful"][:12]
    contexts = [load_library()[name].context() for name in ("constitution", "values")]
    with Ledger("sqlite://") as ledger:
        runner = Runner(make_backend(CONFIG), load_judge("refusal"), ledger, CONFIG.sampling())
        base = measure_baseline(runner, prompts, "confirm")
        found = measure(runner, contexts, prompts, base.outcomes, "confirm")
        trials = [
            Trial(number, context, "arm", "complete", 0, one, one)
            for number, (context, one) in enumerate(zip(contexts, found, strict=True))
        ]
        measured, ids = measure_depth(CONFIG, runner, base, trials)
        rollouts = ledger.rollouts(ids)
    (thinks, does_not) = ({depth: rate.count for depth, rate in trial.depth} for trial in measured)
    assert thinks[0] >= thinks[8] >= thinks[16] > does_not[16] == 0
    assert does_not[8] > 0
    assert measured[0].depth[-1][1].n == 0  # no answer of the pocket model is so long
    assert {len(rollout.prefill) for rollout in rollouts.values()} == {8, 16}
    assert all(one.completion_ids[: len(one.prefill)] == one.prefill for one in rollouts.values())
