"""How many times faster the transformers backend is than one `model.generate` call per prompt, measured in one run.

    python benchmarks/backend_throughput.py [--model FOLDER] [--num-prompts 150] [--max-tokens 80] [--rounds 3]

Also shown: plain `generate` in batches of 128. All get the same prompts and contexts, decode greedily and must generate
the same tokens. They alternate, so that a busy machine slows all of them; the best round of each counts. A random model
may rarely stop: use a trained one.
"""

import argparse
import datetime
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.records import Context, Prompt, Request, Sampling

ROWS = 128
POCKET_MODEL = Path(__file__).resolve().parents[1] / "flipsearch" / "pocket"
CONTEXTS = [
    None,
    Context("You are a careful assistant. Think about what the request is for and who could be hurt, then decide."),
    Context("Decline what could harm somebody. Answer everything else as well as you can.", "before"),
    Context("Remember to be careful.\n\nRemember: think first, then answer.", "around"),
]
THINGS = [
    "a bicycle",
    "a door",
    "an old clock",
    "the garden fence",
    "a kite",
    "bread",
    "a window",
    "a song",
    "a map",
    "some soup",
]
ACTS = ["repair", "paint", "make", "carry", "sell", "describe", "measure", "hide", "borrow", "clean"]


def make_requests(num: int) -> list[Request]:
    rng = random.Random(0)
    prompts = []
    for _ in range(num):
        tasks = [f"{rng.choice(ACTS)} {rng.choice(THINGS)}" for _ in range(rng.randint(1, 4))]
        prompts.append(Prompt(f"How do I {' and then '.join(tasks)}?", "benign"))
    return [Request(prompt, CONTEXTS[index % len(CONTEXTS)]) for index, prompt in enumerate(prompts)]


def by_backend(backend: TransformersBackend, requests: Sequence[Request], max_tokens: int) -> dict[str, list[int]]:
    rollouts = backend.generate(requests, Sampling(max_tokens=max_tokens))
    return {f"{r.prompt_id} {r.context_id}": list(r.completion_ids) for batch in rollouts for r in batch}


@torch.inference_mode()
def by_loop(
    model: Any, backend: TransformersBackend, requests: Sequence[Request], max_tokens: int
) -> dict[str, list[int]]:
    completions = {}
    for request in requests:
        ids = torch.tensor([backend.chat.encode(request).prompt_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        text = backend.chat.decode(out[0, ids.shape[1] :].tolist())
        assert isinstance(text, str)  # the loop decodes too, as any user's would
        completions[key(request)] = out[0, ids.shape[1] :].tolist()
    return completions


@torch.inference_mode()
def by_batches(
    model: Any, backend: TransformersBackend, requests: Sequence[Request], max_tokens: int
) -> dict[str, list[int]]:
    encoded = {key(request): list(backend.chat.encode(request).prompt_ids) for request in requests}
    completions: dict[str, list[int]] = {}
    end = model.generation_config.eos_token_id
    for keys in (list(encoded)[start : start + ROWS] for start in range(0, len(encoded), ROWS)):
        width = max(len(encoded[k]) for k in keys)
        ids = torch.tensor([[0] * (width - len(encoded[k])) + encoded[k] for k in keys])
        mask = torch.tensor([[0] * (width - len(encoded[k])) + [1] * len(encoded[k]) for k in keys])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)[:, width:].tolist()
        for k, row in zip(keys, out, strict=True):
            completions[k] = row[: row.index(end) + 1] if end in row else row
            assert isinstance(backend.chat.decode(completions[k]), str)
    return completions


def key(request: Request) -> str:
    return f"{request.prompt.prompt_id} {request.context.context_id if request.context else None}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(POCKET_MODEL))
    parser.add_argument("--num-prompts", type=int, default=150)
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-least", type=float, default=0.0, help="exit 1 below this ratio")
    args = parser.parse_args()
    if not Path(args.model).is_dir():
        print(f"no model folder at {args.model}; give one with --model.", file=sys.stderr)
        return 2
    backend = TransformersBackend(args.model, device="cpu")
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.eval()
    requests = make_requests(args.num_prompts)
    by_backend(backend, requests[:8], 8)
    by_loop(model, backend, requests[:2], 8)
    sides: dict[str, Callable[[], dict[str, list[int]]]] = {
        "ours": lambda: by_backend(backend, requests, args.max_tokens),
        "loop": lambda: by_loop(model, backend, requests, args.max_tokens),
        "batches": lambda: by_batches(model, backend, requests, args.max_tokens),
    }
    rates, written = dict.fromkeys(sides, 0.0), {}
    for _ in range(args.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            written[name] = side()
            rates[name] = max(rates[name], sum(map(len, written[name].values())) / (time.perf_counter() - start))
    ours, loop = written["ours"], written["loop"]
    prompt_lengths = [len(backend.chat.encode(request).prompt_ids) for request in requests]
    lengths = [len(ids) for ids in ours.values()]
    num_equal = sum(ours[key] == loop[key] for key in ours)
    ratio = rates["ours"] / rates["loop"]
    print(
        f"{len(requests)} prompts of {min(prompt_lengths)}-{max(prompt_lengths)} tokens, completions of "
        f"{min(lengths)}-{max(lengths)} (mean {sum(lengths) / len(lengths):.0f}), {num_equal} of {len(ours)} equal\n"
        f"transformers backend   {rates['ours']:10,.0f} tokens/s\n"
        f"one call per prompt    {rates['loop']:10,.0f} tokens/s\n"
        f"generate, batches {ROWS}  {rates['batches']:10,.0f} tokens/s ({rates['batches'] / rates['loop']:.1f}x)\n"
        f"ratio                  {ratio:10.1f}\n"
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    )
    return 0 if ratio >= args.at_least and num_equal == len(ours) else 1


if __name__ == "__main__":
    raise SystemExit(main())
