"""A plan in lines, shown before the work begins: what it costs, and what it can detect."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flipsearch.reporting.format import duration, percent

if TYPE_CHECKING:  # packages of other commands, which load their libraries
    from flipsearch.api.sweep_plan import SweepPlan
    from flipsearch.searching.plan import SearchPlan, Span
    from flipsearch.training.cost import TrainingCost
    from flipsearch.training.plan import TrainPlan


def _notes(notes: Iterable[str], name: str = "Note") -> list[str]:
    """Return notes in lines of at most 80 columns, no option broken."""
    wrapped = (textwrap.wrap(f"{name}: {note}", width=80, break_on_hyphens=False) for note in notes)
    return [line for lines in wrapped for line in lines]


def plan_lines(plan: "SearchPlan") -> list[str]:
    """Return a search plan in a few lines of at most 80 columns."""

    def between(span: "Span") -> str:
        return f"{span.least:,}" if span.least == span.most else f"{span.least:,} to {span.most:,}"

    counts = [f"{split} {kinds['harmful']} + {kinds['benign']}" for split, kinds in plan.prompts.items()]
    rollouts = [f"{phase} {between(span)}" for phase, span in plan.rollouts.items()]
    lines = [
        f"{'prompts':<10}{', '.join(counts)} (harmful + benign)",
        f"{'rollouts':<10}{between(plan.total)} for {plan.num_contexts:,} contexts",
        *(f"{'':<10}{', '.join(rollouts[i : i + 2])}" for i in range(0, len(rollouts), 2)),
        f"{'':<10}contexts come in cohorts; the good ones see more prompts, rung by rung",
        f"{'':<10}placebos have no safety content; confirm prompts are sealed until then",
        f"{'tokens':<10}at most {plan.tokens_at_most:,} ({plan.max_tokens:,} each)",
    ]
    if plan.think_tokens:
        lines.append(
            f"{'thoughts':<10}closed after {plan.think_tokens:,} tokens (--think-tokens); the answer has its own"
        )
    elif plan.think_tokens is None:
        lines.append(f"{'thoughts':<10}a model that thinks has half as many tokens more for it")
    if plan.resample_flip_rate is not None:
        again = f"{percent(plan.resample_flip_rate)} would flip, were p_unsafe uniform"
        lines.append(f"{'samples':<10}{plan.samples} per prompt, unsafe from {plan.unsafe_at} unsafe ones on")
        lines.append(f"{'':<10}sampled again without a context, {again}")
    if plan.tokens_expected and plan.mean_length is not None:
        expected = between(plan.tokens_expected)
        lines.append(f"{'':<10}about {expected} at {plan.mean_length:.1f} each, as in this study's ledger")
    budgets = [f"{plan.budget_tokens:,} tokens"] if plan.budget_tokens else []
    budgets += [f"{plan.time_s:g} s"] if plan.time_s else []
    if budgets:
        lines.append(f"{'':<10}the search ends before it spends {' or '.join(budgets)}")
    return [*lines, *_time_lines(plan), *_resolution_lines(plan)]


def _time_lines(plan: "SearchPlan") -> list[str]:
    """Return how long a search takes at the known speed, or at usual ones, and a warning if that is long."""
    from flipsearch.searching.plan import CPU_SPEED, GPU_SPEED

    def at(speed: float, whose: str = "") -> str:
        least, most = map(duration, plan.seconds(speed))
        return f"{least} to {most} at {speed:,.0f} tokens per second{whose}"

    lines = []
    if plan.tokens_per_s:
        lines.append(f"{'time':<10}{at(plan.tokens_per_s)}")
    elif plan.may_be_slow:
        lines.append(f"{'time':<10}{at(CPU_SPEED, ' (a few CPU cores)')}")
        lines.append(f"{'':<10}{at(GPU_SPEED, ' (a GPU)')}")
    if lines and plan.mean_length is None:
        lines.append(f"{'':<10}if all answers are as long as they may be")
    if plan.is_long:
        lines += _notes([
            f"{'this' if plan.tokens_per_s else 'on a CPU this'} may take days. Take fewer --num-contexts or "
            "--max-prompts, shorter --max-tokens, a --time, a --budget-tokens, or a GPU; what is done is kept. With "
            "--tokens-per-second it shows the time at your own speed."
        ], "Warning")  # fmt: skip
    return lines


def _resolution_lines(plan: "SearchPlan") -> list[str]:
    """Return which differences the confirm split can detect, by the share of prompts unsafe without a context."""
    power, num = plan.resolution, plan.prompts["confirm"]["harmful"]

    def least(difference: float | None) -> str:
        return "none" if difference is None else f"{100 * difference:.0f} points"

    lines = [
        f"{'confirm':<10}of {num:,} harmful prompts, those unsafe without a context distinguish",
        f"{'':<10}flip rates that differ by at least (power {power.power:g}, test level {power.alpha:g})",
        f"{'':<10}{'unsafe':<16}{'winner, placebo':<18}winner, one of {power.num_tests} finalists (Holm)",
    ]
    for row in power.by_unsafe_rate:
        unsafe = f"{row.num_pairs:,} ({row.unsafe_rate:.0%})"
        among = least(row.from_finalist) if power.num_tests else "no other"
        lines.append(f"{'':<10}{unsafe:<16}{least(row.from_placebo):<18}{among}")
    return [*lines, f"{'':<10}{100 * power.delta:g} points need {power.num_pairs_needed:,} unsafe prompts"]


def training_plan_lines(plan: "TrainPlan") -> list[str]:
    """Return what a training takes, beside the paper's, in a few lines, and what speaks against it."""
    from flipsearch.training.plan import PAPER, PAPER_STEPS, PAPER_TOKENS  # which loads torch

    config = plan.config
    first = "; the first at rate 0 (warm-up)" if plan.num_warmup_steps else ""
    return [
        f"{'prompts':<10}{len(plan.prompts):,}",
        f"{'steps':<10}{plan.num_steps:,} of {config.train_batch_size} prompts at {config.learning_rate:g}{first}",
        f"{'tokens':<10}at most {plan.tokens_at_most:,} ({config.max_tokens:,} each)",
        *([] if plan.method.is_supervised else [f"{'rollouts':<10}by {config.rollouts}"]),
        f"{'the paper':<10}{PAPER_STEPS:,} of {PAPER['train_batch_size']} at {PAPER['learning_rate']:g}; "
        f"up to {PAPER_TOKENS:,} tokens each, with the prompt",
        *_notes(plan.notes),
    ]


def training_cost_lines(cost: "TrainingCost") -> list[str]:
    """Return what a training takes, beside the paper's, in lines of at most 80 columns."""
    from flipsearch.training.plan import PAPER, PAPER_STEPS, PAPER_TOKENS  # which loads torch

    tokens, memory, gib = cost.tokens, cost.memory, 2**30
    whence = {"limit": "as long as they may be", "ledger": "as in the study's ledger", "probe": "as measured"}
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    parts |= {"activations": memory.activations, "decode cache": memory.decode_cache}
    shown = ", ".join(f"{name} {size / gib:.2f}" for name, size in parts.items())
    lines = [
        f"{'prompts':<10}{cost.num_prompts:,}",
        f"{'steps':<10}{cost.num_steps:,} of {cost.step_size} prompts at {cost.learning_rate:g}",
        f"{'the paper':<10}{PAPER_STEPS:,} of {PAPER['train_batch_size']} at {PAPER['learning_rate']:g}; "
        f"up to {PAPER_TOKENS:,} tokens each, with the prompt",
        f"{'':<10}steps times learning rate: {percent(cost.share_of_paper)} of the paper's",
        f"{'tokens':<10}{f'{tokens.rollouts:,}' if tokens.rollouts else 'none'} in rollouts; completions have "
        f"{cost.mean_length:,.1f}, {whence[cost.length_from]}",
        f"{'':<10}{tokens.teacher:,} read by the teacher, {tokens.student:,} by the student",
    ]
    lines += [f"{'':<10}{tokens.before:,} in answers before the training"] if tokens.before else []
    on = f" on {cost.num_gpus} GPUs" if cost.num_gpus > 1 else ""
    if cost.steps_s and cost.tokens_per_s:
        lines.append(
            f"{'time':<10}{duration(cost.steps_s)} for all steps{on}, at {cost.tokens_per_s:,.1f} tokens per second"
        )
    else:
        lines.append(f"{'time':<10}not known: give --measure, or --tokens-per-second")
    if cost.total_s:
        lines.append(f"{'':<10}{duration(cost.total_s)} with loading, logged answers and saving")
    if cost.probe and cost.probe.rows < cost.step_size:
        lines.append(f"{'':<10}measured on {cost.probe.rows} rows of up to {cost.probe.max_tokens} tokens")
    elif cost.probe and cost.probe.max_tokens < cost.max_tokens:
        lines.append(f"{'':<10}measured on completions of up to {cost.probe.max_tokens} tokens")
    where = "this machine" if cost.device == "cpu" else "this GPU"
    lines.append(
        f"{'memory':<10}{memory.peak / gib:.2f} GiB{' per GPU' if cost.device != 'cpu' or on else ''} at its peak; "
        f"{where} has {cost.available / gib:.1f}"
    )
    lines += textwrap.wrap(f"({shown} GiB)", width=80, initial_indent=" " * 10, subsequent_indent=" " * 10)
    warnings = [f"that does not fit into {where}. {SMALLER}"] if not cost.fits else []
    if cost.is_long:
        warnings.append(
            "on a CPU this may take days. Take a GPU, fewer --max-prompts or --epochs, or shorter "
            "--max-tokens; --save-steps and --resume keep what is done."
        )
    return [*lines, *_notes(cost.notes), *_notes(warnings, "Warning")]


SMALLER = (
    "Give --lora 16, --quantize 4bit, --gradient-checkpointing, a smaller --micro-batch-size or --max-tokens, "
    "--optimizer adamw-8bit, or more GPUs: accelerate launch --use_fsdp --fsdp_version 2 -m flipsearch train, with the "
    "same options."
)
"""What makes a training smaller."""


def sweep_plan_lines(plan: "SweepPlan") -> list[str]:
    """Return what a sweep takes, in a few lines."""
    config, trainings = plan.config, plan.trainings
    shares = ", ".join(f"{100 * share:g} %" for share in dict.fromkeys(config.data_sizes))
    sizes = {
        "contexts": len(plan.contexts),
        "methods": len(config.methods),
        "data sizes": len(set(config.data_sizes)),
        "seeds": config.seeds,
    }
    grid = " x ".join(f"{num} {name if num > 1 else name.removesuffix('s')}" for name, num in sizes.items())
    tokens = sum(training.tokens_at_most for training in trainings)
    return [
        f"{'contexts':<10}{', '.join(planned.name for planned in plan.contexts)}",
        f"{'trainings':<10}{len(trainings):,}: {grid}, {plan.num_finished:,} finished",
        f"{'methods':<10}{', '.join(config.methods)} on {shares} of {plan.num_prompts:,} prompts",
        f"{'steps':<10}{trainings[0].num_steps:,} each, {sum(training.num_steps for training in trainings):,} in all",
        f"{'tokens':<10}at most {tokens:,} to learn from",
        f"{'folder':<10}{plan.folder}",
        *_notes(plan.notes),
    ]
