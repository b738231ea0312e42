"""Scores given contexts: no proposals, no pruning, every prompt, beside the empty placebo."""

from collections.abc import Sequence

from flipsearch.config import ScoreConfig
from flipsearch.core.errors import StudyError
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Prompt
from flipsearch.core.studies import Study, StudyKind
from flipsearch.measuring.measure import flip_difference, measure, measured_trial
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.searching.after.second_judges import other_judges, with_second_judges
from flipsearch.searching.baseline import coverage_notes, measure_baseline, require_unsafe
from flipsearch.searching.report import make_study


def run_score(
    config: ScoreConfig,
    runner: Runner,
    contexts: Sequence[Context],
    prompts: Sequence[Prompt],
    name: str,
    second: Sequence[Judge] = (),
) -> Study:
    """Return a study of the given contexts, in order of flip rate, with the empty placebo last.

    The judges `second` have a column each. Raises StudyError without a harmful prompt and NothingToFlipError if no
    answer without context is unsafe.
    """
    chosen = first_of_each_kind([p for p in prompts if config.split in (None, p.split)], config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in chosen):
        raise StudyError(f"no harmful prompt in the {config.split or 'given'} prompts (of {len(prompts)}).")
    base = measure_baseline(runner, chosen, config.split or "all")
    require_unsafe(runner, base)
    runner.enter(Phase.SCORE)
    measured = measure(runner, [*contexts, Context("")], base.prompts, base.outcomes, base.split)
    trials = [
        measured_trial(runner, number, context, "arm", measurement)
        for number, (context, measurement) in enumerate(zip(contexts, measured[:-1], strict=True))
    ]
    trials.append(measured_trial(runner, len(contexts), Context(""), "placebo", measured[-1]))
    judges = other_judges(runner.judge, runner.judge, second)
    *arms, placebo = with_second_judges(runner, judges, base, trials)[0]
    arms = [arm.with_confirmed(net=flip_difference(arm.search, placebo.search)) for arm in arms]
    arms.sort(key=lambda arm: -(arm.search.flip_rate.value or 0.0))
    notes = [*runner.backend.notes, *coverage_notes(runner, base)]
    if any(context.template for context in contexts) and config.split is None:
        notes.append("Scored on every prompt: for a context that a search found on these, --split confirm is fairer.")
    return make_study(StudyKind.SCORE, config, runner, [base], [*arms, placebo], notes, name=name)
