"""A thought that has taken its budget is closed as the template closes it, and the answer has tokens of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flipsearch.backends.base import check_model
from flipsearch.backends.chat import ThoughtBudget, ThoughtWatch
from flipsearch.backends.decoding import chooser
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.backends.vllm import VllmBackend
from flipsearch.config import SearchConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Prompt, Request, Rollout, Sampling
from tests import models
from tests.models import tiny_qwen3
from tests.world import flat

BUDGET = Sampling(max_tokens=6, think_tokens=5)
REQUESTS = [Request(Prompt(f"How do I fix {number} clocks?" * (number % 3 + 1), "benign")) for number in range(6)]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    """A model whose template opens a think block, and which never closes one."""
    folder = tmp_path_factory.mktemp("model")
    return TransformersBackend(str(tiny_qwen3(folder, chat_template=models.R1_TEMPLATE, eos_scale=0.0)))


def by_prompt(rollouts: Any) -> dict[str, Rollout]:
    return {rollout.prompt_id: rollout for rollout in flat(rollouts)}


def test_a_thought_is_closed_when_its_tokens_are_spent(backend: TransformersBackend) -> None:
    closing = backend.watch.closing_ids
    free = by_prompt(backend.generate(REQUESTS, Sampling(max_tokens=5)))
    for prompt_id, rollout in by_prompt(backend.generate(REQUESTS, BUDGET)).items():
        assert rollout.completion_ids[:5] == free[prompt_id].completion_ids
        assert rollout.completion_ids[5 : 5 + len(closing)] == closing
        assert rollout.forced_close
        assert rollout.num_thought_tokens == 5 + len(closing)
        assert len(rollout.completion_ids) == rollout.num_thought_tokens + BUDGET.max_tokens
        assert rollout.finish_reason == "length"
        assert "\n</think>\n\n" in rollout.completion
        parts = rollout.parts
        assert parts.answer is not None or parts.leaks  # this model may open another thought in its answer


@pytest.mark.parametrize("num_forced", [3, 6, 9])
def test_a_completion_that_is_continued_is_the_one_made_at_once(backend: TransformersBackend, num_forced: int) -> None:
    for temperature in (0.0, 1.0):
        sampling = replace(BUDGET, temperature=temperature)
        whole = by_prompt(backend.generate(REQUESTS, sampling))
        begun = [replace(r, prefill=whole[r.prompt.prompt_id].completion_ids[:num_forced]) for r in REQUESTS]
        for prompt_id, rollout in by_prompt(backend.generate(begun, sampling)).items():
            assert rollout.completion_ids == whole[prompt_id].completion_ids
            assert rollout.forced_close


class Engine:
    """vLLM's interface on the model of another backend."""

    vllm = SimpleNamespace(SamplingParams=lambda **options: SimpleNamespace(**options))

    def __init__(self, backend: TransformersBackend) -> None:
        self._backend = backend

    def complete(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        outputs = []
        for prompt, options in zip(prompts, params, strict=True):
            assert options.stop_token_ids == sorted(self._backend.chat.end_ids)
            choose = chooser([REQUESTS[0]], Sampling(options.max_tokens), self._backend._decoder.device)
            (ids,) = self._backend._decoder.complete([prompt], [0], options.max_tokens, choose)
            assert ids is not None
            reason = "stop" if self._backend._decoder.ends(ids) else "length"
            written = SimpleNamespace(token_ids=ids, finish_reason=reason, cumulative_logprob=0.0)
            outputs.append(SimpleNamespace(outputs=[written]))
        return outputs


@pytest.mark.parametrize("sampling", [BUDGET, replace(BUDGET, max_tokens=2), replace(BUDGET, think_tokens=9)])
@pytest.mark.parametrize("ends", [False, True])
def test_vllm_closes_the_same_thoughts(
    backend: TransformersBackend, sampling: Sampling, ends: bool, tmp_path: Path
) -> None:
    if ends:  # some completions end by themselves, in the thought too
        backend = TransformersBackend(str(tiny_qwen3(tmp_path, chat_template=models.R1_TEMPLATE)))
    other = VllmBackend.__new__(VllmBackend)
    other._use(backend.chat)
    other.model_id, other.max_positions = backend.model_id, backend.max_positions
    other._engine = Engine(backend)  # type: ignore[assignment]
    assert by_prompt(other.generate(REQUESTS, sampling)) == by_prompt(backend.generate(REQUESTS, sampling))


WORDS = ["<t>", "</t>", "a", "b", "\n"]
WATCH = ThoughtWatch("<t>", "</t>", 0, 1, (4, 1, 4), lambda ids: "".join(WORDS[id] for id in ids))
IN_TEXT = replace(WATCH, open_id=None, close_id=None)


@pytest.mark.parametrize("watch", [WATCH, IN_TEXT])
def test_a_model_that_closes_its_thought_in_time_is_left_alone(watch: ThoughtWatch) -> None:
    budget = ThoughtBudget(watch, Sampling(max_tokens=2, think_tokens=3), in_thought=False)
    for id in (0, 2, 2, 1, 3):
        budget.follow(id)
        assert budget.next_id is None
        assert not budget.is_full
    budget.follow(3)
    assert budget.is_full
    assert (budget.num_thought_tokens, budget.was_forced) == (4, False)
    assert watch.num_thought_tokens((0, 2, 2, 1, 3, 3)) == 4
    assert watch.num_thought_tokens((0, 2, 2)) == 0


@pytest.mark.parametrize("watch", [WATCH, IN_TEXT])
def test_what_is_forced_follows_from_the_tokens_before_it(watch: ThoughtWatch) -> None:
    budget, written = ThoughtBudget(watch, Sampling(max_tokens=1, think_tokens=2), in_thought=True), []
    while not budget.is_full:
        written.append(2 if budget.next_id is None else budget.next_id)
        budget.follow(written[-1])
    assert written == [2, 2, 4, 1, 4, 2]
    again = ThoughtBudget(watch, budget.sampling, in_thought=True).follow_all(written)
    assert (again.num_thought_tokens, again.was_forced) == (budget.num_thought_tokens, True) == (5, True)


def test_a_model_that_answers_at_once_has_the_length_of_an_answer() -> None:
    budget = ThoughtBudget(WATCH, Sampling(max_tokens=3, think_tokens=9), in_thought=False).follow_all((2, 2, 2))
    assert budget.is_full


def test_a_budget_is_refused_where_nothing_can_keep_it(tmp_path: Path) -> None:
    far = SearchConfig(model="http://127.0.0.1:1/v1#far", think_tokens=9)
    with pytest.raises(BackendError, match="--think-tokens is for local models"):
        check_model(far)
    table = tmp_path / "replies.json"
    table.write_text("[]")
    with pytest.raises(BackendError, match="--think-tokens is for models"):
        check_model(SearchConfig(backend="scripted", model=str(table), think_tokens=9))
