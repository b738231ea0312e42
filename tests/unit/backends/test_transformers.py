"""What a user sees of the transformers backend: memory errors are survived, bad input is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flipsearch.backends import loading
from flipsearch.backends.base import end_ids
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import Prompt, Request, Sampling
from tests import models
from tests.models import tiny_qwen3
from tests.world import flat

SHORT, TWELVE = Sampling(max_tokens=6), Sampling(max_tokens=12)
REQUESTS = [Request(Prompt(f"How do I fix {number} clocks?" * (number % 4 + 1), "benign")) for number in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(folder: Path) -> TransformersBackend:
    return TransformersBackend(str(folder))


def break_at(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch, num_rows: int, error: Exception
) -> list[int]:
    """Make batches of `num_rows` rows or more fail; return the list of the sizes tried."""
    complete, sizes = backend._decoder.complete, []

    def fragile(prompts: Sequence[Any], *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) >= num_rows:
            raise error
        return complete(prompts, *rest)

    monkeypatch.setattr(backend._decoder, "complete", fragile)
    return sizes


def test_a_rollout_holds_its_tokens_and_their_text(backend: TransformersBackend) -> None:
    for request, rollout in zip(REQUESTS[:1], flat(backend.generate(REQUESTS[:1], SHORT)), strict=True):
        assert rollout.num_prompt_tokens == len(backend.chat.encode(request).prompt_ids)
        assert 1 <= len(rollout.completion_ids) <= SHORT.max_tokens
        assert rollout.completion == backend.chat.decode(rollout.completion_ids)
        assert (rollout.finish_reason == "stop") == backend._decoder.ends(rollout.completion_ids)


def test_rollouts_are_yielded_batch_by_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TransformersBackend(str(folder), batch_size=4)
    seen = break_at(backend, monkeypatch, 99, RuntimeError("never"))
    next(flat(backend.generate(REQUESTS, SHORT)))
    assert seen == [4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_batch(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = {r.prompt_id: r.completion for r in flat(backend.generate(REQUESTS, SHORT))}
    sizes = break_at(backend, monkeypatch, 6, error)
    rollouts = list(flat(backend.generate(REQUESTS, SHORT)))
    assert {r.prompt_id: r.completion for r in rollouts} == expected
    assert sizes == [20, 10, 5, 5, 5, 5]  # the smaller size is remembered


def test_a_containers_memory_limit_makes_the_batches_smaller(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, limit = TransformersBackend(str(folder)), tmp_path / "memory.max"
    sizes = break_at(backend, monkeypatch, 10**6, RuntimeError())
    monkeypatch.setattr(loading, "LIMIT_FILE", limit)
    for text, num_batches in (("max\n", 1), (f"{2**40}\n", 1), ("1\n", len(REQUESTS))):
        limit.write_text(text)
        sizes.clear()
        list(flat(backend.generate(REQUESTS, SHORT)))
        assert len(sizes) == num_batches


def test_one_prompt_out_of_memory_is_an_error_rollout(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(backend, monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory."))
    rollouts = list(flat(backend.generate(REQUESTS[:3], SHORT)))
    assert [r.finish_reason for r in rollouts] == ["error"] * 3
    assert all("out of memory with a single prompt" in r.error for r in rollouts)


def test_other_failures_are_raised(backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(backend, monkeypatch, 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(flat(backend.generate(REQUESTS, SHORT)))


def test_a_prompt_beyond_the_models_length_is_an_error_and_never_cut(backend: TransformersBackend) -> None:
    long = Request(Prompt("clock " * 600, "benign"))
    rollouts = {r.prompt_id: r for r in flat(backend.generate([long, REQUESTS[0]], SHORT))}
    assert rollouts[long.prompt.prompt_id].finish_reason == "error"
    assert "but the model holds 512; lower max_tokens" in rollouts[long.prompt.prompt_id].error
    assert rollouts[REQUESTS[0].prompt.prompt_id].finish_reason != "error"


def test_a_prompt_that_the_template_refuses_is_an_error(tmp_path: Path) -> None:
    refusing = "{%- if 'forbidden' in messages[0].content %}{{ raise_exception('not this') }}{%- endif %}\n"
    backend = TransformersBackend(str(tiny_qwen3(tmp_path, chat_template=refusing + models.PLAIN_TEMPLATE)))
    bad = Request(Prompt("a forbidden word", "harmful"))
    rollouts = {r.prompt_id: r for r in flat(backend.generate([bad, REQUESTS[0]], SHORT))}
    assert rollouts[bad.prompt.prompt_id].error == "the prompt or context cannot be encoded: not this"
    assert rollouts[REQUESTS[0].prompt.prompt_id].finish_reason != "error"


def test_samples_of_one_prompt_differ_and_are_reproduced_by_the_seed(backend: TransformersBackend) -> None:
    requests = [Request(REQUESTS[0].prompt, None, index) for index in range(8)]
    sampling = Sampling(max_tokens=20, temperature=1.0)

    def sample(seed: int) -> dict[int, tuple[int, ...]]:
        rollouts = flat(backend.generate(requests, Sampling(max_tokens=20, temperature=1.0, seed=seed)))
        return {r.sample_index: r.completion_ids for r in rollouts}

    assert sample(sampling.seed) == sample(sampling.seed) != sample(1)
    assert len(set(sample(0).values())) > 1


def test_a_completion_that_starts_inside_a_think_block_says_so(tmp_path: Path) -> None:
    backend = TransformersBackend(str(tiny_qwen3(tmp_path, chat_template=models.R1_TEMPLATE)))
    assert all(r.opens_thinking for r in flat(backend.generate(REQUESTS[:2], SHORT)))


def test_identity_follows_weights_template_switch_and_precision(folder: Path, tmp_path: Path) -> None:
    name = str(folder)
    ids = [
        TransformersBackend(name).model_id,
        TransformersBackend(name, thinking="off").model_id,
        TransformersBackend(name, dtype="bfloat16").model_id,
        TransformersBackend(str(tiny_qwen3(tmp_path / "seed", seed=1))).model_id,
        TransformersBackend(str(tiny_qwen3(tmp_path / "plain", chat_template=models.PLAIN_TEMPLATE))).model_id,
    ]
    assert len(set(ids)) == len(ids)
    assert TransformersBackend(name, batch_size=3).model_id == ids[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"dtype": "int3"}, "dtype is 'int3', expected auto, float32"),
        ({"thinking": "maybe"}, "expected one of auto, on, off"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformersBackend(str(folder), **options)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("never_heard_of", "never_heard_of"), ("t5", "a model of type t5 does not continue a text; use one that does")],
)
def test_a_model_that_cannot_be_loaded_is_one_clear_line(model_type: str, message: str, tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(BackendError, match=rf"cannot be loaded: .*{message}") as caught:
        TransformersBackend(str(folder))
    assert "\n" not in str(caught.value)


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(flat(TransformersBackend(str(folder)).generate(REQUESTS[:2], SHORT)))
    assert capfd.readouterr() == ("", "")


def test_end_tokens_of_config_and_tokenizer_count() -> None:
    class Source:
        def __init__(self, ids: object) -> None:
            self.eos_token_id = ids

    assert end_ids(Source([1, 2]), Source(3)) == {1, 2, 3}
    assert end_ids(None, Source(None)) == set()
    with pytest.raises(BackendError, match=r"name '<end>' as its end token, expected a token's id: fix"):
        end_ids(Source([1, "<end>"]))


def test_max_tokens_below_one_is_refused(backend: TransformersBackend) -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0, expected at least 1"):
        list(flat(backend.generate(REQUESTS, Sampling(max_tokens=0))))


def test_a_completion_continues_its_prefill(folder: Path) -> None:
    backend, prompt = TransformersBackend(str(folder)), Prompt("garden river", "benign")
    for sampling in (TWELVE, Sampling(max_tokens=12, temperature=1.0)):
        whole = next(flat(backend.generate([Request(prompt)], sampling)))
        for length in (0, 1, 5):
            request = Request(prompt, prefill=whole.completion_ids[:length])
            rollout = next(flat(backend.generate([request], sampling)))
            assert rollout.completion_ids == whole.completion_ids
            assert rollout.num_generated == len(whole.completion_ids) - length
            assert (rollout.rollout_id == whole.rollout_id) == (length == 0)


def test_prefills_of_unequal_length_share_a_call(folder: Path) -> None:
    backend = TransformersBackend(str(folder))
    prompts = [Prompt(f"garden {index}", "benign") for index in range(4)]
    requests = [Request(prompt, prefill=(7,) * (2 * index)) for index, prompt in enumerate(prompts)]
    rollouts = {rollout.prompt_id: rollout for rollout in flat(backend.generate(requests, TWELVE))}
    for request in requests:
        rollout = rollouts[request.prompt.prompt_id]
        assert rollout.completion_ids[: len(request.prefill)] == request.prefill
        assert len(rollout.completion_ids) <= TWELVE.max_tokens


def test_a_prefill_longer_than_a_completion_is_an_error(folder: Path) -> None:
    request = Request(Prompt("garden", "benign"), prefill=(7,) * 13)
    rollout = next(flat(TransformersBackend(str(folder)).generate([request], TWELVE)))
    assert rollout.finish_reason == "error"
    assert "13 tokens, but max_tokens is 12" in rollout.error
