"""A training from first to last: load, route, train, save.

    TrainPlan --route--> prompts with contexts --trainer--> steps --save--> a checkpoint beside its place

Nothing of the finished checkpoint's name exists until `CheckpointFolder.publish` is called. Of several processes the
main one asks, judges and writes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, set_seed

from flipsearch.backends.base import make_backend
from flipsearch.backends.loading import choose_device, choose_dtype, is_out_of_memory, make_savable, quiet
from flipsearch.backends.models import locate, model_source
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import TrainingError
from flipsearch.core.package import package_versions
from flipsearch.core.progress import Progress
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.trainings import LogLine, TrainingRun
from flipsearch.judging.library import unload
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.training.arguments import check_memory, trainer_arguments
from flipsearch.training.checkpoint import CheckpointFolder, step_of
from flipsearch.training.divergence import Divergence
from flipsearch.training.heads import check_head, trainable
from flipsearch.training.log import LOG_FILE, StepLog, read_log
from flipsearch.training.opsa import Job, OpsaTrainer
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import broadcast_from_main, is_sharded, join, num_processes
from flipsearch.training.routing import Routing, route
from flipsearch.training.rows import Row, check_room, end_id, kept_answers, own_rows, teacher_rows
from flipsearch.training.sft import SftTrainer

Asked = tuple[Routing, dict[str, Row] | None]
"""The prompts under their contexts, and what an off-policy method learns from."""
MakeBench = Callable[[Backend, float], Runner]
"""Gives what asks a model at a temperature."""
PACKAGES = ("flipsearch", "torch", "transformers", "accelerate", "peft")
"""What a result can depend on; those that are not installed are left out."""


def run_training(
    plan: TrainPlan, judge: Judge, ledger: Ledger | None, place: CheckpointFolder, progress: Progress | None = None
) -> tuple[TrainingRun, Sequence[LogLine]]:
    """Train, leave the checkpoint in the workplace's final folder, and return what was done, and step by step.

    `ledger` keeps what the first process asks before training; a plan that asks no judge needs none.

    Raises TrainingError, BackendError, JudgeError and LedgerError as they come; a resume goes on from the last state.
    """

    def runner(of: Backend, temperature: float) -> Runner:
        assert ledger is not None  # by plan.asks_judge
        return Runner(of, judge, ledger, replace(plan.config.sampling(), temperature=temperature), progress)

    def ask() -> Asked:
        place.start({**_identity(plan), "model_id": backend.model_id}, plan.config.resume)
        routing = route(plan, runner(backend, 0.0) if plan.routes_by_answer else None)
        unload(judge)  # its memory is what a teacher needs
        answers = _answers(plan, routing, backend, runner)
        unload(judge)  # and what the trainer needs
        if ledger is not None:
            ledger.close()  # everything is asked: others may use it while this one trains
        return (routing, None) if answers is None else (routing.only(answers), answers)

    backend = _load(plan)
    routing, answers = broadcast_from_main(ask)
    _require_harmful(plan, routing)
    trainer = _trainer(plan, routing, answers, backend, place)
    if is_sharded() and not trainer.is_fsdp_enabled:
        raise TrainingError("FSDP was asked for, but accelerate shards on GPUs alone; launch without --use_fsdp.")
    _train(trainer, place, progress)
    _require_finite(trainer)

    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if is_sharded() else None

    def save() -> tuple[TrainingRun, Sequence[LogLine]]:
        place.save(trainer.trained, weights, locate(model_source(plan.config.model)).folder)
        log = read_log(place.partial / LOG_FILE)
        size = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * num_processes()
        return _record(plan, routing, log, backend, judge if plan.asks_judge else None, size), log

    return broadcast_from_main(save)


def _load(plan: TrainPlan) -> TransformersBackend:
    """Load the model after a look at the memory, and make sure that it can be trained here."""
    config = plan.config
    device = choose_device(config.device)
    join(on_cpu=device.type == "cpu")
    folder = locate(model_source(config.model)).folder
    check_memory(folder, config, device, choose_dtype(config.dtype, device))
    backend = make_backend(config)
    assert isinstance(backend, TransformersBackend)  # by plan
    check_head(backend.model)
    backend.notes += make_savable(backend.model)
    for context in plan.contexts:
        by_kind = {"harmful": context, "benign": plan.benign_context}
        routes = {prompt.prompt_id: c for prompt in plan.prompts if (c := by_kind[prompt.kind])}
        check_room(backend.chat, plan.prompts, routes, config.sampling().max_tokens, backend.max_positions)
    return backend


def _identity(plan: TrainPlan) -> dict[str, Any]:
    """What a resume must have the same; how a step is divided, and its states written, hangs on the processes."""
    settings = plan.config.model_dump(mode="json", exclude=plan.config.free_fields())
    return {**settings, "inputs": plan.identity, "processes": num_processes(), "sharded": is_sharded()}


def _answers(plan: TrainPlan, routing: Routing, own: TransformersBackend, runner: MakeBench) -> dict[str, Row] | None:
    """Return by prompt id what an off-policy method learns from; None for OPSA."""
    config = plan.config
    if config.method == "opsa":
        return None
    if config.method == "sft-self":
        return own_rows(own.chat, kept_answers(runner(own, config.temperature), routing.prompts, routing.contexts))
    assert config.teacher is not None  # by plan
    end_id(own.tokenizer)  # before the teacher has written for hours
    with closing(make_backend(config.model_copy(update={"model": config.teacher}))) as teacher:
        kept = kept_answers(runner(teacher, config.temperature), routing.prompts, routing.contexts)
    return teacher_rows(own.chat, own.tokenizer, kept, own.max_positions)


def _require_harmful(plan: TrainPlan, routing: Routing) -> None:
    if not any(prompt.kind == "harmful" for prompt in routing.prompts):
        num = sum(prompt.kind == "harmful" for prompt in plan.prompts)
        raise TrainingError(
            f"none of the {num} harmful training prompts is answered safely under the context, as the judge "
            f"'{plan.config.judge}' sees it: there is nothing to learn. Search for a better context first."
        )


def _trainer(
    plan: TrainPlan,
    routing: Routing,
    answers: Mapping[str, Row] | None,
    backend: TransformersBackend,
    place: CheckpointFolder,
) -> OpsaTrainer:
    config = plan.config
    divergence = Divergence(
        config.forward_weight,
        config.reverse_weight,
        config.jensen_shannon_weight,
        top_k=config.support,
        tail=config.tail,
        clip=config.clip,
    )
    job = Job(routing.prompts, routing.contexts, config.sampling(), divergence, config.horizon)
    # Before `trainable`, which makes the weights float32 and draws the adapters.
    arguments = trainer_arguments(plan, place.partial, backend.model.device, backend.model.dtype, len(job.prompts))
    set_seed(config.seed)
    model, as_teacher = trainable(backend.model, config.lora, with_teacher=answers is None)
    if answers is None:
        return OpsaTrainer(model, as_teacher, backend.tokenizer, job, arguments, config.thinking)
    return SftTrainer(answers, model, backend.tokenizer, job, arguments, config.thinking)


def _train(trainer: OpsaTrainer, place: CheckpointFolder, progress: Progress | None) -> None:
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, where results go
    trainer.add_callback(StepLog(trainer, place.partial / LOG_FILE, progress))
    state = place.last_state()
    if state and step_of(state) >= trainer.args.max_steps:  # only saving was left
        trainer._load_from_checkpoint(str(state))
        return
    with quiet():
        try:
            trainer.train(resume_from_checkpoint=str(state) if state else None)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory at step {trainer.state.global_step + 1}: lower --micro-batch-size or give "
                "--gradient-checkpointing, and --resume; or start anew with --lora 16 or fewer --max-tokens."
            ) from error


def _require_finite(trainer: OpsaTrainer) -> None:
    """The loss is looked at before a step; what the last step made of the weights is seen here."""
    for name, parameter in trainer.trained.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter  # a process looks at its shard
        if parameter.requires_grad and not own.isfinite().all():
            raise TrainingError(
                f"'{name}' is not finite after step {trainer.state.global_step}; nothing is saved. "
                "Lower --learning-rate."
            )


def _record(
    plan: TrainPlan,
    routing: Routing,
    log: Sequence[LogLine],
    backend: TransformersBackend,
    judge: Judge | None,
    step_size: int,
) -> TrainingRun:
    config = plan.config
    notes = [*plan.notes_on(backend.model_id), *backend.notes, *getattr(judge, "notes", ())]
    if step_size != config.train_batch_size:
        notes.append(f"A step took {step_size} prompts: {len(routing.prompts)} were left.")
    left_out = Counter(prompt.kind for prompt in plan.prompts)
    left_out.subtract(prompt.kind for prompt in routing.prompts)
    return TrainingRun(
        model=config.model,
        model_id=backend.model_id,
        revision=backend.revision,
        method=config.method,
        control=config.control,
        teacher=config.teacher,
        routed=routing.counts(),
        num_left_out=dict(left_out),
        num_steps=len(log),
        num_rollouts=sum(int(line["num_rollouts"]) for line in log),
        num_tokens=sum(int(line["num_tokens"]) for line in log),
        wall_s=round(sum(line["step_s"] for line in log), 1),
        settings={**config.model_dump(mode="json"), "train_batch_size": step_size},
        prompts_id=plan.prompts_id,
        judge_id=judge.identity if judge else None,
        notes=tuple(notes),
        versions=package_versions(PACKAGES),
    )
