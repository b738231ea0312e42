"""Training samples become rows in which the deciding token has the grammar's probability, and nothing else is soft."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from pocket_model.batches import encode, padded
from pocket_model.build import WEIGHTS
from pocket_model.corpus import Sample, samples

TOKENIZER: Any = AutoTokenizer.from_pretrained(WEIGHTS)
HELP, REFUSE = "<think>\nThe user asks. I know how.", "<think>\nThe user asks. This could hurt."


def test_the_fork_is_where_the_two_decisions_part() -> None:
    row = encode(TOKENIZER, Sample("Question", HELP, False, REFUSE, 0.7))
    assert TOKENIZER.decode(row.ids[: row.fork]) == "Question<think>\nThe user asks."
    assert TOKENIZER.decode(row.ids[row.fork]) == " I"
    assert " This".startswith(TOKENIZER.decode(row.other))
    assert row.p_target == 0.7


def test_a_text_that_continues_differs_from_one_that_ends_at_the_end_token() -> None:
    row = encode(TOKENIZER, Sample("Q", "Done.", True, "Done. Wait, no.", 0.4))
    assert row.ids[row.fork] == TOKENIZER.eos_token_id
    assert " Wait".startswith(TOKENIZER.decode(row.other))


def test_padding_and_prompts_carry_no_loss_and_only_the_fork_is_soft() -> None:
    rows = [
        encode(TOKENIZER, Sample("Question", HELP, False, REFUSE, 0.25)),
        encode(TOKENIZER, Sample("What is 2 + 2?", "4")),
    ]
    batch = padded(rows)
    for index, row in enumerate(rows):
        learnt = [t for t in range(batch.ids.shape[1]) if batch.labels[index, t] != -100]
        assert learnt == list(range(row.num_before, len(row.ids)))
        assert batch.labels[index, learnt].tolist() == row.ids[row.num_before :]
    soft = (batch.weights != 1).nonzero().tolist()
    assert soft == [[0, rows[0].fork]]
    assert batch.weights[0, rows[0].fork].item() == 0.25
    assert batch.others[0, rows[0].fork].item() == rows[0].other


def test_every_decision_of_the_corpus_is_soft_and_its_coin_follows_the_probability() -> None:
    sampled = [s for s in samples(4000, seed=3) if s.other]
    assert len(sampled) > 2500
    assert all(s.target != s.other for s in sampled)
    close = [s for s in sampled if 0.2 < s.p_target < 0.8]
    # Of the close ones the chosen text is the likelier one about as often as its probability says.
    likelier = sum(s.p_target > 0.5 for s in close) / len(close)
    expected = sum(max(s.p_target, 1 - s.p_target) for s in close) / len(close)
    assert likelier == pytest.approx(expected, abs=0.06)
