"""sweep: trainings under several contexts, and which figure of a context predicts their harm.

    contexts x methods x data sizes x seeds --train--> checkpoints --evaluate--> harm on prompts that nothing saw
    contexts --anatomy--> flip rate, net flip rate, kinds of flips, Delta_safety --rank correlation--> harm

One folder holds all of it. Each part is a file that is written when it is finished: the same command makes what is
left, also after a kill, and one with more seeds, methods or data sizes makes those that are new.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from statistics import fmean

from flipsearch.api.preflight import anatomy
from flipsearch.api.sweep_plan import (
    PlannedContext,
    PlannedTraining,
    SweepPlan,
    card_file,
    planned_sweep,
    read_part,
    write_part,
)
from flipsearch.api.training import evaluate, train
from flipsearch.config import SweepConfig
from flipsearch.core.errors import BackendError, StudyError, TrainingError, TrainingStoppedError
from flipsearch.core.files import TRAINING_PACKAGES, package_versions
from flipsearch.core.measurements import Estimate
from flipsearch.core.progress import Progress
from flipsearch.core.records import content_id
from flipsearch.core.sweeps import SWEEP_FORMAT, Sweep, SweepRun, SweptContext
from flipsearch.core.trainings import Anatomy, Metric, Scorecard
from flipsearch.measuring.measure import flip_difference
from flipsearch.reporting.sweep_page import write_sweep
from flipsearch.results import SweepResult
from flipsearch.settings import Given, library_for, takes
from flipsearch.statistics.agreement import groups_of
from flipsearch.statistics.intervals import wilson
from flipsearch.templating.library import control_context
from flipsearch.training.processes import StopSignals

WEIGHTS = ("*.safetensors", "*.bin")


@takes(SweepConfig)
def sweep(
    given: Given[SweepConfig],
    *,
    progress: Progress | None = None,
    on_plan: Callable[[SweepPlan], None] | None = None,
    on_part: Callable[[str], None] | None = None,
    plan_only: bool = False,
) -> SweepResult | None:
    """Train under several contexts, and say which figure of a context predicts harm after training.

    The same command continues; finished parts are not made again. `on_plan` is called before a model is loaded, and
    with `plan_only` that is all; `on_part` is called with a line before each part. Raises FlipsearchError in one line
    for anything that cannot be used; a training that cannot be made is left out, with a note.
    """
    with planned_sweep(given, keeps_folder=not plan_only) as plan:
        if on_plan:
            on_plan(plan)
        if plan_only:
            return None
    start_part = on_part or (lambda line: None)
    with StopSignals("before the first training"):
        contexts = [_measured(plan, planned, progress, start_part) for planned in plan.contexts]
    runs: list[SweepRun] = []
    notes = list(plan.notes)
    known = {plan.result_file(training) for training in plan.trainings}
    if num_others := len({*(plan.folder / "runs").glob("*.json")} - known):
        notes.append(f"Finished trainings of other settings in '{plan.folder}': {num_others}; they are not shown here.")
    for number, training in enumerate(plan.trainings, start=1):
        file = plan.result_file(training)
        run = read_part(file, SweepRun, training.identity)
        if run is None:
            start_part(f"training {number} of {len(plan.trainings)}: {training.title}")
            checkpoint = plan.checkpoints / training.name
            was_there = checkpoint.exists()
            try:
                run = write_part(file, SweepRun, _trained(plan, training, checkpoint, progress))
            except TrainingStoppedError:
                raise
            except (TrainingError, BackendError, StudyError) as error:
                if not (was_there or isinstance(error, TrainingError)):
                    raise
                todo = f" If '{checkpoint}' is damaged, remove it: the same command trains it again."
                notes.append(f"Not trained: {training.title}: {error}{todo if was_there else ''}")
                continue
            write_sweep(_result(plan, contexts, [*runs, run], notes), plan.folder)  # as far as it came
        if plan.config.drop_weights:
            for weights in _weights_of(plan.checkpoints / training.name):
                weights.unlink()
        runs.append(run)
    result = _result(plan, contexts, runs, notes)
    write_sweep(result, plan.folder)
    return SweepResult(result, plan.folder)


def _result(plan: SweepPlan, contexts: Sequence[SweptContext], runs: Sequence[SweepRun], notes: Sequence[str]) -> Sweep:
    """Return the record of what was trained so far."""
    return Sweep(
        format=SWEEP_FORMAT,
        name=plan.folder.name,
        model=plan.config.model,
        contexts=tuple(sorted(contexts, key=lambda swept: swept.flip_rate.value or 0.0)),
        runs=tuple(runs),
        groups=tuple(groups_of(plan.config.methods, plan.config.data_sizes, contexts, runs)),
        num_planned=len(plan.trainings),
        settings=plan.config.model_dump(mode="json"),
        notes=tuple(notes),
        versions=package_versions(TRAINING_PACKAGES),
    )


def _measured(
    plan: SweepPlan, planned: PlannedContext, progress: Progress | None, start_part: Callable[[str], None]
) -> SweptContext:
    """Return what a context does to the model before any training, beside neutral text of its length and place."""
    config = plan.config
    critical = {"critical_tokens": plan.critical_tokens}
    identity = content_id(plan.basis, planned.context.context_id, config.predict_split, config.count_flips, critical)
    file = plan.folder / "measured" / planned.file.name
    if known := read_part(file, SweptContext, identity):
        return known
    start_part(f"before training: {planned.name}")

    def anatomy_of(card: Path) -> Anatomy:
        settings = {**plan.evaluated, "split": config.predict_split, "count_flips": config.count_flips, "depths": (0,)}
        more = {"model": config.model, "reports": plan.folder, "progress": progress}
        return anatomy(context=str(card), **settings, **critical, **more).anatomy

    neutral = control_context(library_for(config.model, config.contexts), "neutral", planned.context)
    own, placebo = anatomy_of(planned.file), anatomy_of(card_file(plan.folder, neutral))
    flips = own.measurement.flip_rate
    harmful = next((part for part in own.divergences if part.kind == "harmful"), None)
    swept = SweptContext(
        identity=identity,
        context=planned.context,
        name=planned.name,
        is_placebo=planned.is_placebo,
        flip_rate=flips,
        net_flip_rate=flip_difference(own.measurement, placebo.measurement),
        refusal_share=wilson(min(flips.count, own.measurement.kinds_after.get("refusal", 0)), flips.count),
        kinds=own.measurement.kinds_after,
        delta_safety=harmful.delta_safety if harmful else Estimate(None, 0.0, 0.0, 0),
        critical_tokens=own.critical_tokens,
        added_refusals=own.measurement.added_refusals,
    )
    return write_part(file, SweptContext, swept)


def _trained(plan: SweepPlan, training: PlannedTraining, checkpoint: Path, progress: Progress | None) -> SweepRun:
    """Return the scores of a training on prompts that neither it nor the search saw."""
    if checkpoint.exists() and not _weights_of(checkpoint):  # removed, and then its result was lost
        rmtree(checkpoint)
    is_started = checkpoint.with_name(f"{checkpoint.name}.partial").exists()
    run = train(**training.settings, name=training.name, resume=is_started, progress=progress).run
    config = plan.config
    problems = {"reasoning": config.reasoning, "max_problems": config.max_problems}
    with StopSignals("during an evaluation"):
        card = evaluate(
            model=str(checkpoint), reports=plan.folder, progress=progress, **plan.evaluated, **problems
        ).scorecard
    harm, base_harm = _mean_rates(card, "harmful_rate")
    over_refusal, base_over_refusal = _mean_rates(card, "over_refusal_rate")
    return SweepRun(
        identity=training.identity,
        context_id=training.context.context.context_id,
        method=training.method,
        data_share=training.data_share,
        seed=training.seed,
        num_prompts=sum(routed.num_prompts for routed in run.routed),
        num_steps=run.num_steps,
        num_tokens=run.num_tokens,
        harm=harm,
        base_harm=base_harm,
        over_refusal=over_refusal,
        base_over_refusal=base_over_refusal,
        composite=card.composite,
        tax=card.tax,
    )


def _weights_of(checkpoint: Path) -> list[Path]:
    return [path for pattern in WEIGHTS for path in checkpoint.glob(pattern)]


def _mean_rates(card: Scorecard, metric: Metric) -> tuple[float | None, float | None]:
    """Return the mean of a rate over the sets, of the trained model and of its base."""
    rows = [score for score in card.scores if score.metric == metric]
    sides = [row.new.rate.value for row in rows], [row.base.rate.value if row.base else None for row in rows]
    new, base = (fmean(known) if (known := [v for v in side if v is not None]) else None for side in sides)
    return new, base
