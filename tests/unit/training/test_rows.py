"""Teacher and student read the same completion ids, aligned by their offset, whatever precedes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flipsearch.backends.chat import Chat
from flipsearch.core.errors import TrainingError
from flipsearch.core.records import PLACEMENTS, Context, Placement, Prompt
from flipsearch.training.model import completion_hidden
from flipsearch.training.rows import TrainingRow, check_fits, lay_out, make_row, prompt_lengths
from tests.models import tiny_qwen3

PROMPT = Prompt("How do I fix a clock?", "harmful")
COMPLETION = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat(AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def a_row(chat: Chat, placement: Placement = "system") -> TrainingRow:
    routes = {PROMPT.prompt_id: Context("Think first.\n\nThen decide.", placement)}
    return make_row(chat, PROMPT, routes, COMPLETION, "stop")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_hidden_states_of_a_batch_are_those_of_each_row_alone(chat: Chat, model: Any, placement: Placement) -> None:
    rows = [a_row(chat, placement), make_row(chat, Prompt("Hi?", "benign"), {}, (9, 3), "stop")]
    for prompts in ([r.student_ids for r in rows], [r.teacher_ids for r in rows]):
        hidden = completion_hidden(model, lay_out(prompts, [r.completion_ids for r in rows]))  # (N, H)
        logits = hidden @ model.get_output_embeddings().weight.T  # (N, V)
        expected = []
        for ids, row in zip(prompts, rows, strict=True):
            whole = model(input_ids=torch.tensor([[*ids, *row.completion_ids]])).logits[0]
            expected.append(whole[len(ids) - 1 : len(ids) - 1 + len(row.completion_ids)])
        torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_context_is_in_the_teachers_prompt_alone(chat: Chat, placement: Placement) -> None:
    row = a_row(chat, placement)
    assert "Think first." in chat.decode(row.teacher_ids)
    assert "Think first." not in chat.decode(row.student_ids)
    assert tuple(row.completion_ids) == COMPLETION
    assert row.student_ids[-3:] == row.teacher_ids[-3:]


def test_a_prompt_without_a_context_is_read_alike_by_both(chat: Chat) -> None:
    row = make_row(chat, PROMPT, {}, COMPLETION, "stop")
    assert row.student_ids == row.teacher_ids


def test_a_context_that_is_too_long_is_refused_and_never_cut_off(chat: Chat) -> None:
    routes = {PROMPT.prompt_id: Context("Think first. " * 20)}
    (longest,) = prompt_lengths(chat, [PROMPT], routes)
    assert longest == len(make_row(chat, PROMPT, routes, COMPLETION, "stop").teacher_ids)
    check_fits(longest, 10, None)
    check_fits(longest, 10, longest + 10)
    with pytest.raises(TrainingError, match=rf"{longest} tokens .* holds {longest + 9};.*Nothing is cut"):
        check_fits(longest, 10, longest + 9)
