"""A reading says what plain transformers says of the same tokens, whatever the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flipsearch.backends import scoring as module
from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, PrefixScore, Prompt, Request, Sampling
from tests.models import tiny_qwen3
from tests.world import flat

CONTEXTS = [None, Context("Think first. Then decide with care."), Context("Be brief.", "after")]
GREEDY = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests(folder: Path) -> list[Request]:
    """Openings of unequal length: what the model writes without a context, here and there with a token changed."""
    prompts = [Prompt("garden river bridge " * (1 + index % 3) + str(index), "benign") for index in range(6)]
    written = {
        rollout.prompt_id: rollout.completion_ids
        for rollout in flat(TransformersBackend(str(folder)).generate([Request(p) for p in prompts], GREEDY))
    }
    made = []
    for index, prompt in enumerate(prompts):
        prefill = written[prompt.prompt_id][: 3 + index]
        changed = (*prefill[:2], (prefill[2] + 1) % 20, *prefill[3:])
        made += [Request(prompt, context, prefill=ids) for context in CONTEXTS for ids in (prefill, changed, ())]
    return made


def plainly(folder: Path, backend: TransformersBackend, request: Request) -> PrefixScore:
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = list(backend.chat.encode(request).prompt_ids)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(request.prefill)])).logits[0, len(prompt) - 1 : -1]
    picked = logits.log_softmax(-1)[range(len(request.prefill)), list(request.prefill)]
    agreed = 0
    while agreed < len(request.prefill) and int(logits[agreed].argmax()) == request.prefill[agreed]:
        agreed += 1
    return PrefixScore(tuple(picked.tolist()), agreed)


def test_readings_are_those_of_plain_transformers(folder: Path, requests: list[Request]) -> None:
    backend = TransformersBackend(str(folder))
    assert isinstance(backend, PrefixScorer)
    found = backend.score(requests)
    assert len({reading.num_agreed for reading in found if reading}) > 3
    for request, reading in zip(requests, found, strict=True):
        assert reading is not None
        expected = plainly(folder, backend, request)
        assert reading.num_agreed == expected.num_agreed
        assert reading.log_probs == pytest.approx(expected.log_probs, abs=1e-4)


def test_readings_do_not_depend_on_the_batch(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TransformersBackend(str(folder))
    together = backend.score(requests)
    monkeypatch.setattr(module, "MOST_ROWS", 5)
    for one, other in zip(together, backend.score(requests), strict=True):
        assert one is not None
        assert other is not None
        assert one.num_agreed == other.num_agreed
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_where_memory_is_short_fewer_are_read_at_once(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, sizes = TransformersBackend(str(folder)), []
    expected = backend.score(requests)
    real = module.read_rows

    def fragile(decoder: Any, rows: Any, prefills: Any) -> dict[int, PrefixScore]:
        sizes.append(len(rows))
        if len(rows) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return real(decoder, rows, prefills)

    monkeypatch.setattr(module, "read_rows", fragile)
    found = backend.score(requests)
    assert [one and one.num_agreed for one in found] == [one and one.num_agreed for one in expected]
    assert sizes[0] > 10
    assert max(sizes[-4:]) <= 10


def test_what_one_prompt_alone_has_no_memory_for_is_no_reading(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, longest = TransformersBackend(str(folder)), requests[-2]
    real = module.read_rows

    def fragile(decoder: Any, rows: Any, prefills: Any) -> dict[int, PrefixScore]:
        if any(prefills[number] == longest.prefill for row in rows for number in row.wanted):
            raise torch.OutOfMemoryError("out of memory")
        return real(decoder, rows, prefills)

    monkeypatch.setattr(module, "read_rows", fragile)
    found = backend.score(requests)
    assert [one is None for one in found] == [request.prefill == longest.prefill for request in requests]


def test_alternatives_of_one_token_are_read_off_one_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, prompt, sizes = TransformersBackend(str(folder)), Prompt("garden river", "benign"), []
    real = module.read_rows

    def counted(decoder: Any, rows: Any, prefills: Any) -> dict[int, PrefixScore]:
        sizes.append(len(rows))
        return real(decoder, rows, prefills)

    asked = [Request(prompt, prefill=prefill) for prefill in ((5,), (6,), (7, 8), (7, 9), (7,), (10, 11))]
    apart = [backend.score([request])[0] for request in asked]
    monkeypatch.setattr(module, "read_rows", counted)
    for one, other in zip(backend.score(asked), apart, strict=True):
        assert one is not None
        assert other is not None
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert one.num_agreed == other.num_agreed
    assert sizes == [2]  # after the prompt and 7, and after the prompt and 10


def test_without_a_context_the_model_agrees_with_what_it_wrote(folder: Path) -> None:
    backend, prompt = TransformersBackend(str(folder)), Prompt("garden", "benign")
    rollout = next(flat(backend.generate([Request(prompt)], GREEDY)))
    (reading,) = backend.score([Request(prompt, prefill=rollout.completion_ids)])
    assert reading is not None
    assert reading.num_agreed == len(rollout.completion_ids)


def test_too_long_for_the_model_is_no_reading(folder: Path) -> None:
    backend = TransformersBackend(str(folder))
    backend.max_positions = 40
    short, long = Prompt("garden", "benign"), Prompt("garden " * 60, "benign")
    found = backend.score([Request(long, prefill=(5, 6)), Request(short, prefill=(5, 6))])
    assert found[0] is None
    assert found[1] is not None


def test_a_completion_goes_on_from_its_opening(folder: Path) -> None:
    backend, prompt = TransformersBackend(str(folder)), Prompt("garden river", "benign")
    for sampling in (GREEDY, Sampling(max_tokens=12, temperature=1.0)):
        whole = next(flat(backend.generate([Request(prompt)], sampling)))
        for length in (0, 1, 5):
            request = Request(prompt, prefill=whole.completion_ids[:length])
            rollout = next(flat(backend.generate([request], sampling)))
            assert rollout.completion_ids == whole.completion_ids
            assert rollout.num_generated == len(whole.completion_ids) - length
            assert (rollout.rollout_id == whole.rollout_id) == (length == 0)


def test_openings_of_unequal_length_share_a_call(folder: Path) -> None:
    backend = TransformersBackend(str(folder))
    prompts = [Prompt(f"garden {index}", "benign") for index in range(4)]
    requests = [Request(prompt, prefill=(7,) * (2 * index)) for index, prompt in enumerate(prompts)]
    found = {rollout.prompt_id: rollout for rollout in flat(backend.generate(requests, GREEDY))}
    for request in requests:
        rollout = found[request.prompt.prompt_id]
        assert rollout.completion_ids[: len(request.prefill)] == request.prefill
        assert len(rollout.completion_ids) <= GREEDY.max_tokens


def test_an_opening_longer_than_a_completion_is_an_error(folder: Path) -> None:
    request = Request(Prompt("garden", "benign"), prefill=(7,) * 13)
    rollout = next(flat(TransformersBackend(str(folder)).generate([request], GREEDY)))
    assert rollout.finish_reason == "error"
    assert "13 tokens, but max_tokens is 12" in rollout.error
