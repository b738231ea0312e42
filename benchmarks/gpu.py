"""What training costs on one GPU, with random weights of Qwen3-0.6B's shape: nothing is downloaded.

    python benchmarks/gpu.py              # some minutes on a GPU
    python benchmarks/gpu.py --tiny       # the same code at a very small size, on a CPU too: its figures mean nothing

rollouts   tokens per second of both paths of `train --rollouts`: transformers, and vLLM where it is installed; the
           first call, which compiles and captures, is apart
training   seconds of a whole step of `OpsaTrainer` (all weights, AdamW) without its rollouts, and the most memory that
           the process held; the divergence is the paper's, on the whole vocabulary
a step     the same completions for us and for TRL's SDFTTrainer, where it is installed (trl 1.16): both sides' passes,
           loss and backward, without an optimizer (opsa_step.py has the details). The weights are in bfloat16, in which
           TRL takes its softmax, too: its loss is then mostly rounding, while in float32 both have the same
the null   a training in bfloat16 without a context: each loss has to be exactly 0, and no weight may move

Exit code 1: the null does not hold. 2: there is no GPU, and --tiny was not given.
"""

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback, TrainingArguments

from backend_throughput import POCKET_MODEL
from flipsearch.backends.chat import Chat
from flipsearch.backends.colocated import ColocatedVllm
from flipsearch.backends.loading import load_model, load_tokenizer, quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.records import Context, Prompt, Request, Sampling
from flipsearch.training.divergence import Divergence
from flipsearch.training.methods import OpsaTrainer
from flipsearch.training.model import student_and_teacher
from flipsearch.training.trainer import TrainingJob
from opsa_step import make_rows, our_step, trl_step

CONTEXT = Context("Before you answer, think about who could be harmed, and decline what would hurt somebody. " * 4)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    model: dict[str, int]
    num_rollouts: int
    rollout_tokens: int
    rows: int
    """Of a training step, and of a backward pass."""
    micro_rows: int
    completion_tokens: int
    steps: int


QWEN3 = {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192,
}  # fmt: skip
SMALL = QWEN3 | {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
SIZES = {False: Size(QWEN3, 128, 256, 32, 4, 512, 4), True: Size(SMALL, 4, 8, 4, 2, 16, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a very small model and few tokens, on any device")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("no GPU is here, so nothing is measured; --tiny runs the same code at a small size.", file=sys.stderr)
        return 2
    device, size, start = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SIZES[args.tiny], time.time()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}; {'a tiny model: figures mean nothing' if args.tiny else 'Qwen3-0.6B in shape, random weights'}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, size)
        report_rollouts(folder, size, device)
        report_training(folder, size, device)
        report_step(folder, size, device)
        holds = report_null(folder, size, device)
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "vllm", "trl") if has(p)]
    today = datetime.datetime.now(tz=datetime.UTC)
    print(f"{card}, {', '.join(versions)}, {time.time() - start:.0f} s in all, {today:%Y-%m-%d}")
    return 0 if holds else 1


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def save_model(folder: Path, size: Size) -> None:
    """Write the model, with the pocket model's tokenizer: its ids are the first of the vocabulary."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(POCKET_MODEL)
    shape: dict[str, Any] = {**size.model, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    shape["pad_token_id"] = tokenizer.pad_token_id
    with quiet():
        model: Any = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True))
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def make_prompts(num: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"How do I fix clock number {number}?", "harmful") for number in range(num))


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of some work, done on the device too, and what it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def reset_peak(device: torch.device) -> int:
    """Return the bytes that are held now, which the peak is counted from."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def shown_peak(device: torch.device, before: int = 0) -> str:
    if device.type != "cuda":
        return "peak not known on a CPU"
    return f"peak {(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB"


def report_rollouts(folder: Path, size: Size, device: torch.device) -> None:
    """Print the speed of both paths, on the same prompts."""
    model, tokenizer = load_model(folder, device, torch.bfloat16), load_tokenizer(folder)
    requests = [Request(prompt) for prompt in make_prompts(size.num_rollouts)]
    sampling = Sampling(size.rollout_tokens, 0.6)
    longest = max(len(Chat(tokenizer).encode(request).prompt_ids) for request in requests) + size.rollout_tokens
    paths: dict[str, Callable[[], Any]] = {"transformers": lambda: TransformersBackend.around(model, tokenizer)}
    if has("vllm"):
        paths["vllm"] = lambda: ColocatedVllm(model, folder, tokenizer, max_model_len=longest)
    else:
        print("rollouts  vllm          not installed: not measured")
    for name, load in paths.items():
        start_s, backend = timed(device, load)
        rates = []
        for _ in range(3):
            seconds, batches = timed(device, lambda: list(backend.generate(requests, sampling)))  # noqa: B023
            rates.append(sum(len(rollout.completion_ids) for batch in batches for rollout in batch) / seconds)
        print(
            f"rollouts  {name:12}  {max(rates[1:]):12,.0f} tokens/s, {rates[0]:,.0f} at first; {len(requests)} prompts "
            f"of up to {size.rollout_tokens} tokens, started in {start_s:.1f} s"
        )
        if isinstance(backend, ColocatedVllm):
            backend.close()


class StepTimes(TrainerCallback):
    """Notes when steps are done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends = device, [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the device."""
        timed(self.device, lambda: None)
        self.ends.append(time.perf_counter())


def trained(folder: Path, size: Size, device: torch.device, routes: Any, tokens: int) -> tuple[Any, StepTimes, bool]:
    """Return the trainer of a training after its steps, when they were done, and whether a weight moved."""
    model, tokenizer, prompts = (
        load_model(folder, device, torch.bfloat16),
        load_tokenizer(folder),
        make_prompts(size.rows),
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=size.steps, per_device_train_batch_size=size.micro_rows,
        gradient_accumulation_steps=size.rows // size.micro_rows, learning_rate=1e-5, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=device.type == "cpu",
    )  # fmt: skip
    with quiet():
        student, rounded, as_teacher = student_and_teacher(model, 0, with_teacher=True)
        job = TrainingJob(student, as_teacher, tokenizer, prompts, routes, arguments, rounded=rounded)
        trainer, times = OpsaTrainer(job, Sampling(tokens, 0.6), Divergence()), StepTimes(device)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(times)
        before = [parameter.detach().to("cpu", copy=True) for parameter in student.parameters()]
        times.ends = [time.perf_counter()]
        trainer.train()
    moved = any(not torch.equal(old, now.detach().cpu()) for old, now in zip(before, student.parameters(), strict=True))
    return trainer, times, moved


def report_training(folder: Path, size: Size, device: torch.device) -> None:
    """Print what a step takes beside its rollouts, and the memory of all."""
    reset_peak(device)
    routes = {prompt.prompt_id: CONTEXT for prompt in make_prompts(size.rows)}
    trainer, times, _ = trained(folder, size, device, routes, size.completion_tokens)
    whole, rollout_s = (times.ends[-1] - times.ends[0]) / size.steps, trainer.stats.rollout_s / size.steps
    print(
        f"training  step {whole - rollout_s:.2f} s and rollouts {rollout_s:.2f} s by transformers; {size.rows} rows of "
        f"up to {size.completion_tokens} tokens, {size.micro_rows} a backward pass; {shown_peak(device)}"
    )


def report_step(folder: Path, size: Size, device: torch.device) -> None:
    """Print a step of ours and one of TRL on the same completions."""
    rows = make_rows(size.micro_rows, size.completion_tokens, size.model["vocab_size"])
    sides = {"ours, paper": (our_step, Divergence()), "ours, JSD": (our_step, Divergence(0, 0, 1))}
    if has("trl"):
        sides["TRL, JSD"] = (trl_step, Divergence(0, 0, 1))
    else:
        print("a step    TRL           not installed: not measured")
    for name, (make_step, spec) in sides.items():
        step: Any = make_step(str(folder), spec, size.micro_rows, device.type, torch.bfloat16)
        step(rows)  # allocates the gradients
        before, seconds, loss = reset_peak(device), math.inf, math.nan
        for _ in range(3):
            taken, loss = timed(device, partial(step, rows))
            seconds = min(seconds, taken)
        print(f"a step    {name:12}  {seconds:.3f} s, loss {loss:.5f}, {shown_peak(device, before)} beyond the models")
        step = None


def report_null(folder: Path, size: Size, device: torch.device) -> bool:
    """Print whether a training without a context learns nothing at all; return it."""
    trainer, _, moved = trained(folder, size, device, {}, size.completion_tokens // 8)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    holds = losses == [0.0] * size.steps and not moved
    print(f"the null  losses {losses}, weights {'moved' if moved else 'as they were'}: {'holds' if holds else 'FAILS'}")
    return holds


if __name__ == "__main__":
    raise SystemExit(main())
