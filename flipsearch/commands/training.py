"""train, evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from flipsearch.commands.console import print_outcome
from flipsearch.commands.options import (
    Backend,
    BatchSize,
    Benign,
    Config,
    Contexts,
    Device,
    Dtype,
    Harmful,
    Json,
    Judge,
    MaxTokens,
    Model,
    Prompts,
    Reports,
    Seed,
    Temperature,
    Thinking,
    TopK,
    TopP,
    option,
)
from flipsearch.core.trainings import METHODS

app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    context: Annotated[
        list[str] | None,
        option("best.txt, a card, a text or a template; with several, each prompt goes to the first that flips it."),
    ] = None,
    benign_context: Annotated[str | None, option("Context for benign prompts (none).")] = None,
    method: Annotated[str | None, option(f"{', '.join(METHODS)}; the first is the default.")] = None,
    teacher: Annotated[
        str | None, option("Whose answers are learnt, where the method needs it.", metavar="MODEL")
    ] = None,
    control: Annotated[
        str | None, option("Put this in the context's place: empty, neutral or shuffled.", "--context-control")
    ] = None,
    gate: Annotated[
        bool | None, option("Leave out harmful prompts that the context does not make safe.", "--gate")
    ] = None,
    name: Annotated[str | None, option("Name of the checkpoint; derived from the settings if not given.")] = None,
    checkpoints: Annotated[Path | None, option("Folder of the checkpoints (checkpoints).")] = None,
    resume: Annotated[bool | None, option("Go on from the last state that was saved.", "--resume")] = None,
    epochs: Annotated[float | None, option("Passes over the prompts (3; pocket 6).")] = None,
    max_steps: Annotated[int | None, option("Optimizer steps, instead of --epochs.")] = None,
    learning_rate: Annotated[float | None, option("Of AdamW (1e-5; pocket 3e-4).")] = None,
    train_batch_size: Annotated[int | None, option("Prompts a step (64; pocket 32).")] = None,
    micro_batch_size: Annotated[int | None, option("Rows a backward pass; changes memory and rounding alone.")] = None,
    warmup_share: Annotated[float | None, option("Share of the steps (0.1); a cosine follows.")] = None,
    weight_decay: Annotated[float | None, option("Of AdamW (0).")] = None,
    max_grad_norm: Annotated[float | None, option("Clip of the gradient norm (1); 0 clips nothing.")] = None,
    forward_weight: Annotated[float | None, option("Of KL(teacher || student) (0.5).")] = None,
    reverse_weight: Annotated[float | None, option("Of KL(student || teacher) (0.5).")] = None,
    jensen_shannon_weight: Annotated[float | None, option("Of the Jensen-Shannon divergence (0).")] = None,
    support: Annotated[int | None, option("Compare on the teacher's so many likeliest tokens (0: on all).")] = None,
    tail: Annotated[str | None, option("With --support: renormalised (the default) or bucket.")] = None,
    clip: Annotated[float | None, option("Most that a token's divergence counts (no clip).")] = None,
    horizon: Annotated[int | None, option("Only a completion's first so many tokens count (all; pocket 40).")] = None,
    lora: Annotated[int | None, option("Train LoRA adapters of this rank (0: all weights).", metavar="RANK")] = None,
    gradient_checkpointing: Annotated[
        bool | None, option("Less memory, more time.", "--gradient-checkpointing")
    ] = None,
    save_steps: Annotated[int | None, option("Save the state every so many steps (five times; 0 never).")] = None,
    report_to: Annotated[list[str] | None, option("tensorboard, wandb, …; repeatable.", metavar="NAME")] = None,
    split: Annotated[str | None, option("Prompts: search, confirm, training, all (all but evaluation).")] = None,
    model: Model = None,
    thinking: Thinking = None,
    device: Annotated[str | None, option("auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, option("auto, float32 or bfloat16 (weights trained in float32 all the same).")] = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, option("Of the rollouts (0.6).")] = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    contexts: Contexts = None,
    max_prompts: Annotated[int | None, option("Most prompts a kind (all).")] = None,
    seed: Seed = None,
    reports: Reports = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a model towards what it does under a context, without the context: OPSA, or a baseline method."""
    flags = {k: v for k, v in locals().items() if v is not None and k not in ("json", "config")}
    from flipsearch.api import training as api
    from flipsearch.commands import console
    from flipsearch.training.processes import MainProcessFailedError, is_main_process

    if not is_main_process():  # of several processes one speaks
        try:
            api.train(**flags, config=config)
        except MainProcessFailedError as error:
            raise SystemExit(error.exit_code) from None
        return
    with console.bars() as progress:
        done = api.train(**flags, config=config, progress=progress)
    print_outcome(done, json, lambda done: console.show_training(done.run, done.log, done.folder))


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="What is evaluated: a checkpoint, another folder, or a hub id.", metavar="MODEL")
    ],
    against: Annotated[
        str | None, option("The base (what the checkpoint was made from).", "--against", metavar="MODEL")
    ] = None,
    split: Annotated[str | None, option("Prompts to ask: evaluation (the default), another split, or all.")] = None,
    reasoning: Annotated[
        list[str] | None,
        option("Problems: arithmetic, or a file (question, answer); repeatable.", metavar="NAME|PATH"),
    ] = None,
    samples: Annotated[int | None, option("Answers a problem, with --temperature (1).")] = None,
    max_problems: Annotated[int | None, option("Most problems a set (all).")] = None,
    backend: Backend = None,
    thinking: Thinking = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    prompts: Prompts = None,
    harmful: Harmful = None,
    benign: Benign = None,
    judge: Judge = None,
    max_prompts: Annotated[int | None, option("Most prompts a set and kind (all).")] = None,
    seed: Seed = None,
    reports: Reports = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Hold a model against its base: safety, over-refusal, reasoning, composite S, tax."""
    flags = {k: v for k, v in locals().items() if v is not None and k not in ("json", "config")}
    from flipsearch.api import training as api
    from flipsearch.commands import console
    from flipsearch.reporting.scorecard import scorecard_remarks, scorecard_text

    with console.bars() as progress:
        done = api.evaluate(**flags, config=config, progress=progress)
    card = done.scorecard
    print_outcome(
        done, json, lambda _: console.show_scorecard(scorecard_text(card), scorecard_remarks(card), done.path)
    )
