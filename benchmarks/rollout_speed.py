"""How fast a model in training is rolled out by its vLLM engine, against the same engine given token ids directly.

    python benchmarks/rollout_speed.py [--model FOLDER] [--num-prompts 64] [--max-tokens 64] [--rounds 3]

Ours is a step of `flipsearch train --rollouts vllm`: weights taken over and compared, templates applied, completions
decoded. The other side is an engine of vLLM's own defaults in this process, which gets the ids and returns ids. Both
decode greedily and must write the same. They alternate, and processor time counts: other programs slow neither.
"""

import argparse
import datetime
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from backend_throughput import POCKET_MODEL, make_requests
from flipsearch.backends.colocated import ColocatedVllm
from flipsearch.backends.loading import load_model, load_tokenizer, quiet
from flipsearch.core.records import Request, Sampling


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=POCKET_MODEL)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-least", type=float, default=0.0, help="exit 1 below this ratio")
    args = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vllm is not installed: not measured.")
        return 0

    import vllm
    import vllm._custom_ops as operations

    requests = [Request(request.prompt) for request in make_requests(args.num_prompts)]
    sampling, longest = Sampling(max_tokens=args.max_tokens), 256 + args.max_tokens
    model = load_model(args.model, torch.device("cpu"), torch.float32)
    ours = ColocatedVllm(model, args.model, load_tokenizer(args.model), max_model_len=longest)
    prompts = [vllm.TokensPrompt(prompt_token_ids=list(ours.chat.encode(r).prompt_ids)) for r in requests]
    params = vllm.SamplingParams(
        max_tokens=args.max_tokens, temperature=0, stop_token_ids=sorted(ours.chat.end_ids), detokenize=False
    )
    operations._supports_onednn = hasattr(torch.ops._C, "create_onednn_mm_handler")  # as vLLM has it
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with quiet():
        raw = vllm.LLM(model=str(args.model), dtype="float32", enforce_eager=True, max_model_len=longest)
    operations._supports_onednn = False

    def by_vllm(num: int) -> list[list[int]]:
        raw.reset_prefix_cache()
        return [list(output.outputs[0].token_ids) for output in raw.generate(prompts[:num], params, use_tqdm=False)]

    def by_us(num: int) -> list[list[int]]:
        by_prompt = {r.prompt_id: r.completion_ids for batch in ours.generate(requests[:num], sampling) for r in batch}
        return [list(by_prompt[request.prompt.prompt_id]) for request in requests[:num]]

    sides: dict[str, Callable[[int], list[list[int]]]] = {"ours": by_us, "raw": by_vllm}
    rates, written = dict.fromkeys(sides, 0.0), {name: side(4) for name, side in sides.items()}
    for _ in range(args.rounds):
        for name, side in sides.items():
            start = time.process_time()
            written[name] = side(len(requests))
            rates[name] = max(rates[name], sum(map(len, written[name])) / (time.process_time() - start))
    num_equal = sum(own == its for own, its in zip(written["ours"], written["raw"], strict=True))
    ratio = rates["ours"] / rates["raw"]
    print(
        f"{len(requests)} prompts, {sum(map(len, written['ours'])):,} tokens, {num_equal} equal\n"
        f"rollouts of a training {rates['ours']:10,.0f} tokens per processor second\n"
        f"vLLM alone             {rates['raw']:10,.0f} tokens per processor second\n"
        f"ratio                  {ratio:10.2f}\n"
        f"vllm {vllm.__version__}, {torch.get_num_threads()} threads, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    )
    return 0 if ratio >= args.at_least and num_equal == len(requests) else 1


if __name__ == "__main__":
    raise SystemExit(main())
