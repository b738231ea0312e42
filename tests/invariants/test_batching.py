"""A greedy completion is the same whatever its batch, neighbours or order, and the same as plain `generate`."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from flipsearch.backends import decoding
from flipsearch.backends.decoding import Decoder, shared_prefixes
from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.records import Context, Placement, Prompt, Request, Rollout, Sampling
from tests.models import tiny_qwen3
from tests.world import flat

GREEDY = Sampling(max_tokens=24)
SAMPLED = Sampling(max_tokens=24, temperature=0.8, top_p=0.9, top_k=50)
WORDS = ["garden", "river", "bridge", "clock", "egg", "tyre", "tree", "story"]
PLACEMENTS: list[Placement] = ["system", "before", "after", "around"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def make_requests(num: int = 40) -> list[Request]:
    rng = random.Random(0)
    contexts = [None, *(Context("Think first.\n\nThen decide with care.", placement) for placement in PLACEMENTS)]
    prompts = [Prompt(" ".join(rng.choices(WORDS, k=rng.randint(1, 20))), "benign") for _ in range(num)]
    return [Request(prompt, contexts[index % len(contexts)]) for index, prompt in enumerate(prompts)]


def by_request(rollouts: Sequence[Rollout]) -> dict[tuple[str, str | None], tuple[tuple[int, ...], str]]:
    return {(r.prompt_id, r.context_id): (r.completion_ids, r.finish_reason) for r in rollouts}


def plain_generate(folder: Path, backend: TransformersBackend, request: Request, max_tokens: int) -> tuple[int, ...]:
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([backend.chat.encode(request).prompt_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_completions_do_not_depend_on_the_batch(folder: Path, sampling: Sampling) -> None:
    requests = make_requests()
    expected = by_request(list(flat(TransformersBackend(str(folder), batch_size=1).generate(requests, sampling))))
    assert {reason for _, reason in expected.values()} == {"stop", "length"}
    for batch_size in (3, 17, 64):
        backend = TransformersBackend(str(folder), batch_size=batch_size)
        assert by_request(list(flat(backend.generate(requests[::-1], sampling)))) == expected


def test_completions_equal_those_of_plain_generate(folder: Path) -> None:
    requests = make_requests(12)
    backend = TransformersBackend(str(folder), batch_size=7)
    ours = by_request(list(flat(backend.generate(requests, GREEDY))))
    for request in requests:
        key = (request.prompt.prompt_id, request.context.context_id if request.context else None)
        assert ours[key][0] == plain_generate(folder, backend, request, GREEDY.max_tokens)


def test_computing_prompts_in_small_parts_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = make_requests()
    expected = by_request(list(flat(TransformersBackend(str(folder)).generate(requests, GREEDY))))
    monkeypatch.setattr(decoding, "PART_TOKENS", {True: 1, False: 1})
    assert by_request(list(flat(TransformersBackend(str(folder)).generate(requests, GREEDY)))) == expected


def test_completions_longer_than_the_spare_cache_equal_plain_generate(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path, eos_scale=0.1)  # never stops
    backend = TransformersBackend(str(folder))
    requests = make_requests(3)
    ours = by_request(list(flat(backend.generate(requests, Sampling(max_tokens=150)))))
    for request in requests:
        key = (request.prompt.prompt_id, request.context.context_id if request.context else None)
        assert ours[key] == (plain_generate(folder, backend, request, 150), "length")


def test_a_model_with_sliding_windows_decodes_as_plain_generate_does(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    )
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    model.eval()
    prompts = [list(range(5, 5 + length)) for length in (3, 20, 9, 14)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=7, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    decoder = Decoder(model, {7})
    assert decoder.complete(prompts, [2] * 4, 20, lambda logits, rows, step: logits.argmax(-1)) == expected


def test_shared_prefixes_are_the_longest_common_ones_and_leave_a_token() -> None:
    prompts = [[1, 2, 3, 4], [1, 2, 5], [1, 2], [9, 9], [9, 9]]
    assert shared_prefixes(prompts, ["a", "a", "b", "c", "c"]) == [2, 2, 1, 1, 1]
