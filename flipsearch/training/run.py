"""A training from first to last: load, route, train, save.

    TrainPlan --route--> prompts under contexts --trainer of the method--> steps --save--> a checkpoint beside its place

Nothing of the finished checkpoint's name exists until `CheckpointFolder.publish` is called. Of several processes the
main one generates answers, judges and writes. Knows no method: the plan's row of METHODS says who makes the trainer.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback, set_seed

from flipsearch.backends.base import make_backend, notes_for
from flipsearch.backends.loading import is_out_of_memory, quiet
from flipsearch.backends.models import fingerprint
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import TrainingError
from flipsearch.core.files import TRAINING_PACKAGES, package_versions
from flipsearch.core.measurements import SampleRule
from flipsearch.core.progress import Progress
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.trainings import TRAINING_FORMAT, LogLine, RoutedContext, TrainingRun
from flipsearch.judging.library import unload
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.training.checkpoint import (
    ANSWERS_FILE,
    LOG_FILE,
    VALIDATION_FILE,
    CheckpointFolder,
    save_errors_as_one_line,
    step_of,
)
from flipsearch.training.log import AnswerLog, StepLog, Validation, read_log
from flipsearch.training.model import HeadGetter, head_getter, load_student, student_and_teacher
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import StopSignals, broadcast_from_main, is_sharded, num_processes
from flipsearch.training.rows import Routing, TrainingRow, kept_answers, own_rows, route, teacher_rows, turn_end_id
from flipsearch.training.trainer import CompletionTrainer, MakeTrainer, TrainingJob, trainer_arguments


def run_training(
    plan: TrainPlan,
    judge: Judge,
    ledger: Ledger | None,
    folder: CheckpointFolder,
    progress: Progress | None = None,
    stop: StopSignals | None = None,
) -> tuple[TrainingRun, Sequence[LogLine]]:
    """Train, or continue from the last state; leave the checkpoint in `folder.final`, and return record and log.

    From the first step on the signals of `stop` wait for the end of a step, and after the last one for nobody.
    """
    given = plan
    backend, plan = load_student(plan)
    head = head_getter(backend.model)
    routing, answers = broadcast_from_main(lambda: _before_training(plan, backend, judge, ledger, folder, progress))
    validation = Validation(plan.validation, plan.config, judge, folder.partial / VALIDATION_FILE)
    trainer = trainer_of(plan, backend, head, routing, answers, folder.partial, validation if plan.validation else None)
    if is_sharded() and not trainer.is_fsdp_enabled:
        raise TrainingError("FSDP was requested, but accelerate shards on GPUs alone; launch without --use_fsdp.")
    written = AnswerLog(trainer, plan.config, folder.partial / ANSWERS_FILE)
    trainer.stop = stop or trainer.stop
    trainer.stop.waits = True
    run_steps(trainer, written, folder, progress)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if is_sharded() else None

    def save() -> tuple[TrainingRun, Sequence[LogLine]]:
        with save_errors_as_one_line(folder.final):
            saving_notes = folder.save(trainer.job.model, weights, plan.config.model)
        log = read_log(folder.partial / LOG_FILE)
        arguments = trainer.args
        step_size = arguments.train_batch_size * arguments.gradient_accumulation_steps * num_processes()
        record = _record(plan, routing, log, backend, judge, step_size)
        inputs: dict[str, Any] = {"inputs_id": given.inputs_id, "study_pages": given.study_pages}
        inputs["weights_id"] = fingerprint(folder.final)
        seen = validation.notes(trainer.state.best_global_step) if plan.validation else []
        return replace(record, notes=(*record.notes, *seen, *saving_notes), **inputs), log

    return broadcast_from_main(save)


def trainer_of(
    plan: TrainPlan,
    backend: TransformersBackend,
    head: HeadGetter,
    routing: Routing,
    answers: Mapping[str, TrainingRow],
    folder: Path,
    validation: Validation | None = None,
) -> CompletionTrainer:
    """Return the trainer of a plan's method on a loaded model, which is made trainable."""
    make_trainer: MakeTrainer = resolve_name(plan.method.trainer)
    config, model = plan.config, backend.model
    # The arguments first: a trainable model is in float32, whatever precision it is trained in.
    arguments = trainer_arguments(plan, folder, model.device, model.dtype, len(routing.prompts))
    set_seed(config.seed)  # of the adapters too
    adapters: dict[str, Any] = {"alpha": config.lora_alpha, "targets": config.lora_targets}
    student, rounded, as_teacher = student_and_teacher(
        model, config.lora, with_teacher=not plan.method.is_supervised, **adapters
    )
    prompts, routes = routing.prompts, routing.contexts
    more = (answers, head, rounded, validation)
    job = TrainingJob(student, as_teacher, backend.tokenizer, prompts, routes, arguments, *more)
    return make_trainer(job, config)


def _before_training(
    plan: TrainPlan,
    backend: TransformersBackend,
    judge: Judge,
    ledger: Ledger | None,
    folder: CheckpointFolder,
    progress: Progress | None,
) -> tuple[Routing, dict[str, TrainingRow]]:
    """Start the folder; return the prompts under their contexts and, for supervised methods, the kept answers."""
    config = plan.config
    # A resume must have all of it the same: how a step is divided, and its states written, depends on the processes.
    identity = config.model_dump(mode="json", exclude=config.changeable_fields()) | {"inputs": plan.identity}
    identity |= {"processes": num_processes(), "sharded": is_sharded(), "model_id": backend.model_id}
    folder.start(identity, config.resume)

    def runner(model: Backend, temperature: float) -> Runner:
        assert ledger is not None  # by plan.needs_judge
        rule, sampling = SampleRule(count_kinds=config.count_flips), replace(config.sampling(), temperature=temperature)
        return Runner(model, judge, ledger, sampling, progress, rule=rule)

    known = runner(backend, 0.0) if plan.routes_by_answer else None
    routing, answers = route(plan.prompts, plan.contexts, plan.benign_context, known), {}
    unload(judge)  # a teacher needs its memory
    if plan.method.is_supervised:
        answers = _answer_rows(plan, routing, backend, lambda model: runner(model, config.temperature))
        routing = replace(routing, prompts=tuple(p for p in routing.prompts if p.prompt_id in answers))
    unload(judge)  # the trainer needs its memory
    if ledger is not None:
        ledger.close()  # nothing more is judged: others may use it while this one trains
    if not any(prompt.kind == "harmful" for prompt in routing.prompts):
        num_harmful = sum(prompt.kind == "harmful" for prompt in plan.prompts)
        what, todo = "is answered safely", "Search for a better context first."
        if plan.method.is_supervised:
            what, todo = "has an answer that is safe, whole and complete", f"{todo[:-1]}, or give more --max-tokens."
        raise TrainingError(
            f"none of the {num_harmful} harmful training prompts {what} under the context, as the judge "
            f"'{config.judge}' sees it: there is nothing to learn. {todo}"
        )
    return routing, answers


def _answer_rows(
    plan: TrainPlan, routing: Routing, backend: TransformersBackend, runner: Callable[[Backend], Runner]
) -> dict[str, TrainingRow]:
    if not plan.method.needs_teacher:
        return own_rows(backend.chat, kept_answers(runner(backend), routing.prompts, routing.contexts))
    assert plan.config.teacher is not None  # by plan
    turn_end_id(backend.chat, backend.tokenizer)  # before the teacher has generated for hours
    its_own = {"model": plan.config.teacher, "quantize": None}
    with closing(make_backend(plan.config.model_copy(update=its_own))) as teacher:
        kept = kept_answers(runner(teacher), routing.prompts, routing.contexts)
    return teacher_rows(backend.chat, backend.tokenizer, kept, backend.max_positions)


def run_steps(
    trainer: CompletionTrainer,
    answers: AnswerLog,
    folder: CheckpointFolder,
    progress: Progress | None,
    *callbacks: TrainerCallback,
) -> None:
    """Run the training loop from the last state to the end; TrainingError if it runs out of memory or diverges."""
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, where results go
    for callback in (StepLog(trainer, folder.partial / LOG_FILE, progress, answers), *callbacks):
        trainer.add_callback(callback)
    state = folder.last_state()
    if state and step_of(state) >= trainer.args.max_steps and not trainer.job.validation:  # only saving was left
        trainer._load_from_checkpoint(str(state))
    else:
        try:
            with quiet():
                trainer.train(resume_from_checkpoint=str(state) if state else None)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            step = trainer.state.global_step
            again = ", and --resume" if step else ""
            raise TrainingError(
                f"out of memory at step {step + 1}: lower --micro-batch-size or give --gradient-checkpointing{again}; "
                "or start anew with --lora 16 or fewer --max-tokens."
            ) from error
    trainer.close()
    # The loss is checked before each step; what the last step made of the weights shows only here.
    for name, parameter in trainer.job.model.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter  # each process checks its shard
        if parameter.requires_grad and not own.isfinite().all():
            raise TrainingError(f"'{name}' is not finite after the last step; nothing is saved. Lower --learning-rate.")


def loss_notes(log: Sequence[LogLine]) -> list[str]:
    """Return a note if the loss did not fall from the first fifth of the steps to the last."""
    losses = [line["loss"] for line in log if line.get("loss") is not None]
    size = math.ceil(len(losses) / 5)
    if len(losses) < 2:
        return []
    before, after = (sum(part) / size for part in (losses[:size], losses[-size:]))
    if not any(losses):
        return ["The loss was 0 in every step: the teacher read what the student reads, and nothing was learnt."]
    figures = f"from {before:.3g} in the first {size} of {len(losses)} steps to {after:.3g} in the last {size}"
    todo = "do not expect a change; more steps or a larger --learning-rate may bring one."
    return [f"The loss did not fall: {figures}; {todo}"] if after >= before else []


def _record(
    plan: TrainPlan,
    routing: Routing,
    log: Sequence[LogLine],
    backend: TransformersBackend,
    judge: Judge,
    step_size: int,
) -> TrainingRun:
    config = plan.config
    notes = [*plan.notes_on(backend.model_id), *loss_notes(log)]
    notes += notes_for(backend, {context.placement for context in routing.contexts.values() if context})
    notes += getattr(judge, "notes", ()) if plan.needs_judge else ()
    if step_size != config.train_batch_size:
        notes.append(f"A step took {step_size} prompts: {len(routing.prompts)} were left.")
    left_out = Counter(prompt.kind for prompt in plan.prompts)
    left_out.subtract(prompt.kind for prompt in routing.prompts)
    counts = Counter((prompt.kind, routing.contexts.get(prompt.prompt_id)) for prompt in routing.prompts)
    return TrainingRun(
        format=TRAINING_FORMAT,
        model=config.model,
        model_id=backend.model_id,
        revision=backend.revision,
        method=config.method,
        control=config.control,
        teacher=config.teacher,
        routed=tuple(RoutedContext(kind, context, num) for (kind, context), num in counts.items()),
        num_left_out=dict(left_out),
        num_steps=len(log),
        num_rollouts=sum(int(line["num_rollouts"]) for line in log),
        num_tokens=sum(int(line["num_tokens"]) for line in log),
        wall_s=round(sum(line["step_s"] for line in log), 1),
        settings={**config.model_dump(mode="json"), "train_batch_size": step_size},
        prompts_id=plan.prompts_id,
        judge_id=judge.identity if plan.needs_judge else None,
        notes=tuple(notes),
        versions=package_versions(TRAINING_PACKAGES),
        template_options=backend.chat.options,
    )
