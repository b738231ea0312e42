"""What one OPSA step costs outside generation, against TRL's experimental SDFTTrainer on the same rollouts.

    pip install 'trl==1.16'
    python benchmarks/opsa_step.py [--rounds 3] [--threads 1]

The model is a Qwen3 with 2 layers, hidden size 256, V = 151,936 and random weights, in float32 on the CPU. StepRows are
random ids: a prompt, the prompt behind a context, and a completion that both sides are given instead of sampling it.

timed, ours    lay out both sides, the teacher's hidden states, the student's, `divergence_sum`, backward
timed, TRL     `SDFTTrainer.training_step` unchanged, with `_generate` replaced by the given completions: tokenising
               the prompts (2 ms), the teacher's logits, the student's, its loss, backward

Both score the same ids with the same model and threads, without gradient checkpointing, and neither steps an optimizer.
TRL's `distillation_alpha` is the mixture of a Jensen-Shannon divergence (0 is the forward KL), so like is compared with
like where ours is one too: then both must find the same loss. The paper's divergence, our default, is a sum that TRL
does not have; it is shown against TRL's default. TRL's top-k mode takes the student's likeliest tokens, ours the
teacher's, both 512 of them and renormalised.

Memory is the kernel's high-water mark of a process over the step, less what is resident before it with both models
loaded and gradients allocated, freed memory given back. Every figure comes from a process of its own; they alternate,
so that a busy machine slows all, and the best seconds and the worst peak of the rounds count.
"""

import argparse
import ctypes
import datetime
import gc
import importlib
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flipsearch.backends.loading import quiet
from flipsearch.training.divergence import Divergence, divergence_sum
from flipsearch.training.model import completion_hidden, head_getter, head_of
from flipsearch.training.rows import lay_out

NUM_VOCAB, FIRST_ID = 151_936, 2
PROMPT_TOKENS, CONTEXT_TOKENS = 48, 200
TOP_K = 512
PAPER, JENSEN_SHANNON, FORWARD = Divergence(), Divergence(0, 0, 1), Divergence(1, 0)
LENGTHS = (256, 512, 1024, 2048, 4096)
STEPS = 2
EXACT = 1e-5


@dataclass(frozen=True)
class Variant:
    """A step that is measured."""

    name: str
    spec: Divergence
    num_tokens: int
    num_rows: int = 2
    by_trl: bool = False
    target: tuple[float, float] | None = None
    """At most this share of TRL's seconds and memory."""


class StepRows(NamedTuple):
    """The same completions behind both prompts, as ids."""

    student: list[list[int]]
    contexts: list[list[int]]
    completions: list[list[int]]

    @property
    def teacher(self) -> list[list[int]]:
        """The teacher's prompts."""
        return [[*context, *prompt] for context, prompt in zip(self.contexts, self.student, strict=True)]


class Figures(NamedTuple):
    """What one process measured: a step's best seconds, its peak in bytes, and the loss."""

    seconds: float
    peak: int
    loss: float


Step = Callable[[StepRows], float]
GROUPS = {
    "full vocabulary, 2 rows x 512 completion tokens": [
        Variant("ours, Jensen-Shannon", JENSEN_SHANNON, 512, target=(0.5, 0.1)),
        Variant("ours, the paper's sum", PAPER, 512, target=(0.5, 0.1)),
        Variant("TRL full_logits, Jensen-Shannon", JENSEN_SHANNON, 512, by_trl=True),
        Variant("ours, forward KL", FORWARD, 512),
        Variant("TRL full_logits, forward KL", FORWARD, 512, by_trl=True),
    ],
    f"top {TOP_K}, 2 rows x 256 completion tokens": [
        Variant("ours, Jensen-Shannon", replace(JENSEN_SHANNON, top_k=TOP_K), 256, target=(1.0, 0.25)),
        Variant("ours, the paper's sum", replace(PAPER, top_k=TOP_K), 256, target=(1.0, 0.25)),
        Variant("TRL topk_logits, Jensen-Shannon", replace(JENSEN_SHANNON, top_k=TOP_K), 256, by_trl=True),
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="one suffers least from other work on the machine")
    args = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("trl is not installed: pip install 'trl==1.16'", file=sys.stderr)
        return 2
    if not Path("/proc/self/clear_refs").exists():
        print("peak memory is read from /proc/self, which this system does not have: run it on Linux.", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        reached = [report_exactness(folder)]
        for name, variants in GROUPS.items():
            reached.append(report_group(name, variants, measured(variants, folder, args)))
        lengths = [Variant(f"{num} tokens", PAPER, num, num_rows=1) for num in LENGTHS]
        report_growth(lengths, measured(lengths, folder, args))
    print(
        f"best of {args.rounds} rounds of {STEPS} steps, {os.cpu_count()} cores, {args.threads} thread(s), "
        f"torch {torch.__version__}, trl {importlib.metadata.version('trl')}, "
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    )
    return 0 if all(reached) else 1


def save_model(folder: str) -> None:
    """Write the model."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=NUM_VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        # Larger than usual: with random weights of the usual size a context would hardly move the distributions.
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    with quiet():
        Qwen3ForCausalLM(config).save_pretrained(folder)


def load_model(folder: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device)


def make_rows(num_rows: int, num_tokens: int, num_vocab: int = NUM_VOCAB) -> StepRows:
    """Return rows of random ids, with prompts of unequal lengths."""
    rng = random.Random(0)

    def sample(num: int) -> list[int]:
        return [rng.randrange(FIRST_ID, num_vocab) for _ in range(num)]

    return StepRows(
        [sample(PROMPT_TOKENS + 16 * index) for index in range(num_rows)],
        [sample(CONTEXT_TOKENS) for _ in range(num_rows)],
        [sample(num_tokens) for _ in range(num_rows)],
    )


def our_step(
    folder: str, spec: Divergence, num_rows: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Step:
    """Return our step, as `OpsaTrainer` takes it."""
    student, teacher = (load_model(folder, device, dtype) for _ in range(2))
    teacher.eval().requires_grad_(False)
    student.train()
    head_getter(student)

    def step(rows: StepRows) -> float:
        layout = lay_out(rows.student, rows.completions).to(student.device)
        weights = torch.ones(sum(map(len, rows.completions)), device=device)
        with torch.no_grad():
            hidden = completion_hidden(teacher, lay_out(rows.teacher, rows.completions).to(student.device))
        own, head = completion_hidden(student, layout), head_of(student)
        loss, _ = divergence_sum(own, head, hidden, head_of(teacher), weights, spec)
        loss = loss / len(weights)
        loss.backward()
        return loss.item()

    return step


def trl_step(
    folder: str, spec: Divergence, num_rows: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Step:
    """Return TRL's step, in which the completions are given."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    sdft = importlib.import_module("trl.experimental.sdft")
    options = sdft.SDFTConfig(
        output_dir=folder,
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=num_rows,
        num_generations=1,
        teacher_prompt_template="{privileged_context} {prompt}",
        distillation_mode="topk_logits" if spec.top_k else "full_logits",
        distillation_topk=spec.top_k or None,
        distillation_alpha=spec.mixture if spec.jensen_shannon_weight else 0.0,
        distillation_is_clip=None,
    )
    with quiet():
        # It wants a data set, which is not read: the rows are given to each step.
        trainer = sdft.SDFTTrainer(
            load_model(folder, device, dtype), options, [{"prompt": ""}], processing_class=number_tokenizer()
        )
    trainer.current_gradient_accumulation_steps = 1  # which train() would set

    def step(rows: StepRows) -> float:
        trainer._generate = lambda prompt_ids: (prompt_ids, rows.completions)
        inputs = [
            {"prompt": written(prompt), "privileged_context": written(context)}
            for prompt, context in zip(rows.student, rows.contexts, strict=True)
        ]
        return float(trainer.training_step(trainer.model, inputs, None))

    return step


def number_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads a number as that id."""
    words = {"<pad>": 0, "<end>": 1} | {str(id): id for id in range(FIRST_ID, NUM_VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def written(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def measured(variants: Sequence[Variant], folder: str, args: argparse.Namespace) -> list[Figures]:
    """Return the figures of each variant, over the rounds."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rounds = [
            [pool.submit(measure, variant, folder, args.threads).result() for variant in variants]
            for _ in range(args.rounds)
        ]
    columns = [list(zip(*column, strict=True)) for column in zip(*rounds, strict=True)]
    return [Figures(min(seconds), max(peaks), losses[0]) for seconds, peaks, losses in columns]


def measure(variant: Variant, folder: str, num_threads: int) -> Figures:
    """Return the figures of a variant, in a process that has done nothing else."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(num_threads)
    step = (trl_step if variant.by_trl else our_step)(folder, variant.spec, variant.num_rows)
    step(make_rows(variant.num_rows, 4))  # allocates the gradients
    rows, seconds, loss = make_rows(variant.num_rows, variant.num_tokens), math.inf, math.nan
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = step(rows)
        seconds = min(seconds, time.perf_counter() - start)
    return Figures(seconds, resident("VmHWM") - before, loss)


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def report_group(name: str, variants: Sequence[Variant], figures: Sequence[Figures]) -> bool:
    """Print a group; return whether its targets are reached, with equal losses where they must be."""
    print(f"\n{name}\n{'':33s}{'seconds':>9s}{'peak MB':>9s}{'loss':>12s}   ours / TRL: seconds, memory")
    reached = True
    by_trl = {v.spec: figure for v, figure in zip(variants, figures, strict=True) if v.by_trl}
    for variant, ours in zip(variants, figures, strict=True):
        print(f"{variant.name:33s}{ours.seconds:9.2f}{ours.peak / 1e6:9.0f}{ours.loss:12.6f}", end="")
        if variant.by_trl:
            print()
            continue
        trl = by_trl.get(variant.spec, next(iter(by_trl.values())))
        ratios = ours.seconds / trl.seconds, ours.peak / trl.peak
        print(f"   {ratios[0]:.2f}x, {ratios[1]:.3f}x", end="")
        if variant.target is not None:
            ok = all(ratio <= most for ratio, most in zip(ratios, variant.target, strict=True))
            reached &= ok
            print(f" (target {variant.target[0]}x, {variant.target[1]}x{'' if ok else ': NOT REACHED'})", end="")
        print()
        if variant.spec in by_trl and not variant.spec.top_k and abs(ours.loss - trl.loss) > EXACT:
            print("the two sides do not compute the same loss: no comparison.")
            reached = False
    return reached


def report_growth(variants: Sequence[Variant], figures: Sequence[Figures]) -> None:
    """Print what more completion tokens cost, with the exponent of a power law fitted to the seconds."""
    print("\nours, the paper's sum, full vocabulary, 1 row\ncompletion tokens   seconds  ms per token  peak MB")
    for variant, figure in zip(variants, figures, strict=True):
        per_token = 1000 * figure.seconds / variant.num_tokens
        print(f"{variant.num_tokens:17d}{figure.seconds:10.2f}{per_token:13.2f}{figure.peak / 1e6:10.0f}")
    lengths = [math.log(variant.num_tokens) for variant in variants]
    powers = [
        statistics.linear_regression(lengths, [math.log(value) for value in values]).slope
        for values in ([figure.seconds for figure in figures], [figure.peak for figure in figures])
    ]
    print(f"seconds grow as tokens^{powers[0]:.2f}, peak memory as tokens^{powers[1]:.2f}")


def report_exactness(folder: str) -> bool:
    """Print how far divergence and gradients are from the naive form in float32; return whether within 1e-5."""
    print(f"ours against the naive float32 form, 2 rows x 128 completion tokens (target {EXACT:.0e})")
    rows, reached = make_rows(2, 128), True
    student, teacher = load_model(folder), load_model(folder).requires_grad_(False)
    for name, spec in (
        ("the paper's sum", PAPER),
        ("Jensen-Shannon", JENSEN_SHANNON),
        (f"top {TOP_K}, the paper's sum", replace(PAPER, top_k=TOP_K)),
    ):
        ours, to_ours = with_gradients(student, ours_per_token(student, teacher, rows, spec))
        naive, to_naive = with_gradients(student, naive_per_token(student, teacher, rows, spec))
        value, gradient = largest(ours - naive), max(largest(a - b) for a, b in zip(to_ours, to_naive, strict=True))
        most = max(map(largest, to_naive))
        print(
            f"{name:25s} divergence {naive.mean():.3f} per token, largest difference {value:.1e};  "
            f"gradients up to {most:.1e}, largest difference {gradient:.1e}, of the largest {gradient / most:.1e}"
        )
        reached &= max(value, gradient, gradient / most) <= EXACT
    return reached


def with_gradients(model: Any, divergence: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the divergence of every token, and the gradients of the mean in all parameters."""
    total, per_token = divergence
    gradients = torch.autograd.grad(total / len(per_token), list(model.parameters()))
    return per_token.detach(), list(gradients)


def ours_per_token(student: Any, teacher: Any, rows: StepRows, spec: Divergence) -> tuple[Tensor, Tensor]:
    layouts = [lay_out(prompts, rows.completions) for prompts in (rows.student, rows.teacher)]
    own, hidden = (completion_hidden(m, layout) for m, layout in zip((student, teacher), layouts, strict=True))
    weights = torch.ones(len(own))
    total, per_token = divergence_sum(own, head_of(student), hidden, head_of(teacher), weights, spec)
    return total, per_token.divergence


def naive_per_token(student: Any, teacher: Any, rows: StepRows, spec: Divergence) -> tuple[Tensor, Tensor]:
    """Return the sum and every token's divergence from full logits, by torch's own functions and autograd."""
    log_q, log_p = (
        torch.cat(
            [
                model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for prompt, ids in zip(prompts, rows.completions, strict=True)
            ]
        )
        for model, prompts in ((student, rows.student), (teacher, rows.teacher))
    )  # (N, V)
    if spec.top_k:
        top, index = log_p.topk(spec.top_k)
        log_p, log_q = top.log_softmax(-1), log_q.gather(-1, index).log_softmax(-1)
    log_m = torch.stack([log_p, log_q]).logsumexp(0) - math.log(2)
    per_token = sum(
        weight * kl_div(of, against, reduction="none", log_target=True).sum(-1)
        for weight, against, of in (
            (spec.forward_weight, log_p, log_q),
            (spec.reverse_weight, log_q, log_p),
            (spec.jensen_shannon_weight / 2, log_p, log_m),
            (spec.jensen_shannon_weight / 2, log_q, log_m),
        )
        if weight
    )
    assert isinstance(per_token, Tensor)
    return per_token.sum(), per_token


def largest(values: Tensor) -> float:
    return float(values.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
