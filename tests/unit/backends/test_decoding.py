"""Samples follow the distribution, the filters keep what they should, and nothing depends on the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from flipsearch.backends.decoding import Decoder, DecodingPath, chooser, inverse_cdf, keep_likely
from flipsearch.core.records import Context, Prompt, Request, Sampling
from tests.models import tiny_qwen3

CPU = torch.device("cpu")
LOGITS = torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]).log()


def requests(num: int) -> list[Request]:
    return [Request(Prompt(f"prompt {index}", "benign")) for index in range(num)]


def test_greedy_takes_the_likeliest_token() -> None:
    choose = chooser(requests(1), Sampling(), CPU)
    assert choose(LOGITS, torch.tensor([0]), 0).tolist() == [0]


def test_samples_have_the_frequencies_of_the_distribution() -> None:
    num = 4000
    choose = chooser(requests(num), Sampling(temperature=1.0, max_tokens=1), CPU)
    tokens = choose(LOGITS.expand(num, -1), torch.arange(num), 0)
    rates = torch.bincount(tokens, minlength=5) / num
    # Four standard errors of a rate of one half.
    assert torch.allclose(rates, LOGITS.exp()[0], atol=4 * 0.5 / num**0.5)


@pytest.mark.parametrize("path", [DecodingPath.BATCHED, DecodingPath.ALONE, DecodingPath.UNCACHED])
def test_a_repetition_penalty_is_that_of_transformers(path: DecodingPath, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_qwen3(tmp_path), dtype=torch.float32).eval()
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 14, 15, 16]]
    usual, own = (
        Decoder(model, [1], path).complete(prompts, [0] * 3, 12, chooser(requests(3), Sampling(), CPU), penalty=penalty)
        for penalty in (1.0, 1.5)
    )
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 1, "pad_token_id": 0}
    whole = [model.generate(torch.tensor([ids]), repetition_penalty=1.5, **greedy)[0].tolist() for ids in prompts]
    expected = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
    assert own == expected != usual


def test_temperature_sharpens() -> None:
    num = 500
    choose = chooser(requests(num), Sampling(temperature=0.05, max_tokens=1), CPU)
    assert set(choose(LOGITS.expand(num, -1), torch.arange(num), 0).tolist()) == {0}


def test_a_sample_depends_on_its_own_request_alone() -> None:
    sampling = Sampling(temperature=1.0, max_tokens=3)
    many = requests(5)
    together = chooser(many, sampling, CPU)(LOGITS.expand(5, -1), torch.arange(5), 2).tolist()
    alone = [chooser([request], sampling, CPU)(LOGITS, torch.tensor([0]), 2).item() for request in many]
    shrunk = chooser(many, sampling, CPU)(LOGITS.expand(2, -1), torch.tensor([4, 1]), 2).tolist()
    assert together == alone
    assert shrunk == [together[4], together[1]]


@pytest.mark.parametrize(
    "changed",
    [
        Request(Prompt("other", "benign")),
        Request(Prompt("same", "benign"), Context("Be good.")),
        Request(Prompt("same", "benign"), sample_index=1),
    ],
)
def test_different_requests_sample_different_tokens(changed: Request) -> None:
    flat = torch.zeros(1, 100_000)
    row = torch.tensor([0])
    sampling = Sampling(temperature=1.0, max_tokens=1)
    same = [chooser([Request(Prompt("same", "benign"))], sampling, CPU)(flat, row, 0).item() for _ in range(2)]
    assert same[0] == same[1]
    assert chooser([changed], sampling, CPU)(flat, row, 0).item() != same[0]
    reseeded = Sampling(temperature=1.0, max_tokens=1, seed=1)
    assert chooser([Request(Prompt("same", "benign"))], reseeded, CPU)(flat, row, 0).item() != same[0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [0]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.4, [0]),
        (0, 0.6, [0, 1]),
        (0, 0.95, [0, 1, 2, 3]),
        (3, 0.7, [0, 1]),
    ],
)
def test_filters_keep_the_smallest_sufficient_set(top_k: int, top_p: float, kept: list[int]) -> None:
    filtered = keep_likely(LOGITS, top_k, top_p)
    assert filtered.isfinite()[0].nonzero()[:, 0].tolist() == kept


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda weights: sum(weights) > 1e-3),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2**-53)),
)
def test_a_token_of_probability_zero_is_never_sampled(weights: list[float], uniform: float) -> None:
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities = probabilities / probabilities.sum()
    token = inverse_cdf(probabilities, torch.tensor([uniform], dtype=torch.float64)).item()
    assert probabilities[0, int(token)] > 0
