"""How many times faster the transformers backend is than one `model.generate` a prompt, measured in one run.

    python benchmarks/backend_throughput.py [--model FOLDER] [--num-prompts 150] [--max-tokens 80] [--rounds 3]

Both sides get the same prompts and contexts, decode greedily and must write the same tokens. Sides alternate, so that a
busy machine slows both; the best round of each counts. A random model may rarely stop: give a trained one.
"""

import argparse
import datetime
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.records import Context, Prompt, Request, Sampling

ORGANISM = Path(__file__).resolve().parents[1] / "flipsearch" / "organism" / "weights"
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
    return {f"{r.prompt_id} {r.context_id}": list(r.completion_ids) for r in rollouts}


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
        key = f"{request.prompt.prompt_id} {request.context.context_id if request.context else None}"
        completions[key] = out[0, ids.shape[1] :].tolist()
    return completions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ORGANISM))
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
    rates: dict[str, float] = {"ours": 0.0, "loop": 0.0}
    ours: dict[str, list[int]] = {}
    loop: dict[str, list[int]] = {}
    for _ in range(args.rounds):
        start = time.perf_counter()
        ours = by_backend(backend, requests, args.max_tokens)
        middle = time.perf_counter()
        loop = by_loop(model, backend, requests, args.max_tokens)
        end = time.perf_counter()
        rates["ours"] = max(rates["ours"], sum(map(len, ours.values())) / (middle - start))
        rates["loop"] = max(rates["loop"], sum(map(len, loop.values())) / (end - middle))
    prompt_lengths = [len(backend.chat.encode(request).prompt_ids) for request in requests]
    lengths = [len(ids) for ids in ours.values()]
    num_equal = sum(ours[key] == loop[key] for key in ours)
    ratio = rates["ours"] / rates["loop"]
    print(
        f"{len(requests)} prompts of {min(prompt_lengths)}-{max(prompt_lengths)} tokens, completions of "
        f"{min(lengths)}-{max(lengths)} (mean {sum(lengths) / len(lengths):.0f}), {num_equal} of {len(ours)} equal\n"
        f"transformers backend   {rates['ours']:10,.0f} tokens/s\n"
        f"one generate a prompt  {rates['loop']:10,.0f} tokens/s\n"
        f"ratio                  {ratio:10.1f}\n"
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    )
    return 0 if ratio >= args.at_least and num_equal == len(ours) else 1


if __name__ == "__main__":
    raise SystemExit(main())
