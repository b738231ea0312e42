"""What a user sees of the transformers backend: one rollout a request, memory errors survived, bad input refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flipsearch.backends import loading as memory
from flipsearch.backends.transformers import TransformersBackend, end_ids
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import Context, Prompt, Request, Sampling
from tests import models
from tests.models import tiny_qwen3
from tests.world import flat

SHORT = Sampling(max_tokens=6)
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
    """Make batches of `num_rows` rows or more fail; return the list in which the sizes tried are noted."""
    complete, sizes = backend._decoder.complete, []

    def fragile(prompts: Sequence[Any], *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) >= num_rows:
            raise error
        return complete(prompts, *rest)

    monkeypatch.setattr(backend._decoder, "complete", fragile)
    return sizes


def test_every_request_gets_one_rollout_with_its_ids(backend: TransformersBackend) -> None:
    requests = [*REQUESTS, Request(REQUESTS[0].prompt, Context("Be good.")), Request(REQUESTS[0].prompt, None, 1)]
    rollouts = list(flat(backend.generate(requests, SHORT)))
    asked = {(r.prompt.prompt_id, r.context.context_id if r.context else None, r.sample_index) for r in requests}
    assert len(rollouts) == len(requests)
    assert {(r.prompt_id, r.context_id, r.sample_index) for r in rollouts} == asked
    assert {r.model_id for r in rollouts} == {backend.model_id}


def test_a_rollout_holds_its_tokens_and_their_text(backend: TransformersBackend) -> None:
    for request, rollout in zip(REQUESTS[:1], flat(backend.generate(REQUESTS[:1], SHORT)), strict=True):
        assert rollout.num_prompt_tokens == len(backend.chat.encode(request).prompt_ids)
        assert 1 <= len(rollout.completion_ids) <= SHORT.max_tokens
        assert rollout.completion == backend.chat.decode(rollout.completion_ids)
        assert (rollout.finish_reason == "stop") == backend._decoder.ends(rollout.completion_ids)


def test_nothing_asked_gives_nothing(backend: TransformersBackend) -> None:
    assert list(flat(backend.generate([], SHORT))) == []


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
def test_out_of_memory_halves_the_batch_and_goes_on(
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
    monkeypatch.setattr(memory, "LIMIT_FILE", limit)
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


def test_another_failure_is_not_taken_for_out_of_memory(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(backend, monkeypatch, 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(flat(backend.generate(REQUESTS, SHORT)))


def test_a_prompt_beyond_the_models_length_is_an_error_and_never_cut(backend: TransformersBackend) -> None:
    long = Request(Prompt("clock " * 600, "benign"))
    rollouts = {r.prompt_id: r for r in flat(backend.generate([long, REQUESTS[0]], SHORT))}
    assert rollouts[long.prompt.prompt_id].finish_reason == "error"
    assert "but the model holds 512; lower max_tokens" in rollouts[long.prompt.prompt_id].error
    assert rollouts[REQUESTS[0].prompt.prompt_id].finish_reason != "error"


def test_a_prompt_that_the_template_refuses_is_an_error_and_the_others_go_on(tmp_path: Path) -> None:
    refusing = "{%- if 'forbidden' in messages[0].content %}{{ raise_exception('not this') }}{%- endif %}\n"
    backend = TransformersBackend(str(tiny_qwen3(tmp_path, chat_template=refusing + models.PLAIN_TEMPLATE)))
    bad = Request(Prompt("a forbidden word", "harmful"))
    rollouts = {r.prompt_id: r for r in flat(backend.generate([bad, REQUESTS[0]], SHORT))}
    assert rollouts[bad.prompt.prompt_id].error == "the prompt or context cannot be encoded: not this"
    assert rollouts[REQUESTS[0].prompt.prompt_id].finish_reason != "error"


def test_samples_of_one_prompt_differ_and_come_back_with_the_seed(backend: TransformersBackend) -> None:
    requests = [Request(REQUESTS[0].prompt, None, index) for index in range(8)]
    sampling = Sampling(max_tokens=20, temperature=1.0)

    def draw(seed: int) -> dict[int, tuple[int, ...]]:
        rollouts = flat(backend.generate(requests, Sampling(max_tokens=20, temperature=1.0, seed=seed)))
        return {r.sample_index: r.completion_ids for r in rollouts}

    assert draw(sampling.seed) == draw(sampling.seed) != draw(1)
    assert len(set(draw(0).values())) > 1


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


def test_a_model_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "never_heard_of"}))
    with pytest.raises(BackendError, match=r"cannot be loaded: .*never_heard_of") as caught:
        TransformersBackend(str(folder))
    assert "\n" not in str(caught.value)


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(flat(TransformersBackend(str(folder)).generate(REQUESTS[:2], SHORT)))
    assert capfd.readouterr() == ("", "")


def test_end_tokens_of_config_and_tokenizer_count() -> None:
    class Source:
        def __init__(self, ids: object) -> None:
            self.eos_token_id = ids

    assert end_ids(Source([1, 2]), Source(3)) == {1, 2, 3}
    assert end_ids(None, Source(None)) == set()


def test_max_tokens_below_one_is_refused(backend: TransformersBackend) -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0, expected at least 1"):
        list(flat(backend.generate(REQUESTS, Sampling(max_tokens=0))))
