"""Scores of prefixes equal those of plain transformers, whatever the batch, for requests and for token ids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Llama4VisionConfig,
)

from flipsearch.backends import transformers as scoring
from flipsearch.backends.decoding import Ids
from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TokenScorerConfig, TransformersBackend
from flipsearch.core.errors import BackendError, ConfigError, FlipsearchError
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, PrefixScore, Prompt, Request, Sampling
from tests.models import tiny_qwen3, tiny_tokenizer
from tests.world import flat

CONTEXTS = [None, Context("Think first. Then decide with care."), Context("Be brief.", "after")]
GREEDY = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests(folder: Path) -> list[Request]:
    """Prefills of unequal length: what the model writes without a context, some with a changed token."""
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


def by_transformers(folder: Path, prompt: Ids, prefix: Ids) -> PrefixScore:
    """The score by transformers' own model."""
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1)[range(len(prefix)), list(prefix)]
    num_agreed = 0
    while num_agreed < len(prefix) and int(logits[num_agreed].argmax()) == prefix[num_agreed]:
        num_agreed += 1
    return PrefixScore(tuple(log_probs.tolist()), num_agreed)


def assert_same(scores: Sequence[PrefixScore | None], expected: Sequence[PrefixScore | None]) -> None:
    """Equal but for rounding, and none missing."""
    for score, reference in zip(scores, expected, strict=True):
        assert score is not None
        assert reference is not None
        assert score.num_agreed == reference.num_agreed
        assert score.log_probs == pytest.approx(reference.log_probs, abs=1e-4)


def test_scores_of_prefills_equal_those_of_plain_transformers(folder: Path, requests: list[Request]) -> None:
    backend = TransformersBackend(str(folder))
    assert isinstance(backend, PrefixScorer)
    scores = backend.score(requests)
    assert len({score.num_agreed for score in scores if score}) > 3
    prompts = [backend.chat.encode(request).prompt_ids for request in requests]
    assert_same(
        scores, [by_transformers(folder, *pair) for pair in zip(prompts, (r.prefill for r in requests), strict=True)]
    )


def test_scores_do_not_depend_on_the_batch(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TransformersBackend(str(folder))
    together = backend.score(requests)
    monkeypatch.setattr(scoring, "MAX_SCORED_ROWS", 5)
    assert_same(backend.score(requests), together)


def test_where_memory_is_short_fewer_are_scored_at_once(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, sizes = TransformersBackend(str(folder)), []
    expected = backend.score(requests)
    real = scoring.score_rows

    def fragile(decoder: Any, rows: Any, prefixes: Any) -> dict[int, PrefixScore]:
        sizes.append(len(rows))
        if len(rows) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return real(decoder, rows, prefixes)

    monkeypatch.setattr(scoring, "score_rows", fragile)
    assert_same(backend.score(requests), expected)
    assert sizes[0] > 10
    assert max(sizes[-4:]) <= 10


def test_a_prompt_without_memory_even_alone_has_no_score(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, longest = TransformersBackend(str(folder)), requests[-2]
    real = scoring.score_rows

    def fragile(decoder: Any, rows: Any, prefixes: Any) -> dict[int, PrefixScore]:
        if any(prefixes[index] == longest.prefill for row in rows for index in row.wanted):
            raise torch.OutOfMemoryError("out of memory")
        return real(decoder, rows, prefixes)

    monkeypatch.setattr(scoring, "score_rows", fragile)
    assert [score is None for score in backend.score(requests)] == [
        request.prefill == longest.prefill for request in requests
    ]


def test_alternatives_of_one_token_are_scored_on_one_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, prompt, sizes = TransformersBackend(str(folder)), Prompt("garden river", "benign"), []
    real = scoring.score_rows

    def counted(decoder: Any, rows: Any, prefixes: Any) -> dict[int, PrefixScore]:
        sizes.append(len(rows))
        return real(decoder, rows, prefixes)

    alternatives = [Request(prompt, prefill=prefill) for prefill in ((5,), (6,), (7, 8), (7, 9), (7,), (10, 11))]
    apart = [backend.score([request])[0] for request in alternatives]
    monkeypatch.setattr(scoring, "score_rows", counted)
    assert_same(backend.score(alternatives), apart)
    assert sizes == [2]  # after the prompt and 7, and after the prompt and 10


def test_a_prompt_too_long_for_the_model_has_no_score(folder: Path) -> None:
    backend = TransformersBackend(str(folder))
    backend.max_positions = 40
    short, long = Prompt("garden", "benign"), Prompt("garden " * 60, "benign")
    scores = backend.score([Request(long, prefill=(5, 6)), Request(short, prefill=(5, 6))])
    assert [score is None for score in scores] == [True, False]


PROMPTS: list[Ids] = [list(range(20, 20 + length)) for length in (90, 7, 40, 41, 3)]
PREFIXES: list[Ids] = [[5], [6, 7], [5], [9, 10, 11], [12]]


def llama4(folder: Path) -> Path:
    """A guard of Llama 4's kind: text weights inside a model that sees images."""
    tokenizer = tiny_tokenizer()
    text = Llama4TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, moe_layers=[],
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=1,
        max_position_embeddings=512, attention_chunk_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = Llama4VisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=14,
        vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    return saved(Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)), folder)


def gemma2(folder: Path) -> Path:
    """A guard of ShieldGemma's kind: sliding windows and a cap on attention logits that matters."""
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8, query_pre_attn_scalar=1,
        initializer_range=0.8, attn_logit_softcapping=2.0, max_position_embeddings=512,
    )  # fmt: skip
    return saved(Gemma2ForCausalLM(config), folder)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [tiny_qwen3, gemma2, llama4])
def test_scores_of_token_ids_equal_those_of_plain_transformers(build: Callable[[Path], Path], tmp_path: Path) -> None:
    with quiet():
        folder = build(tmp_path)
    scorer = TokenScorerConfig(str(folder)).load()
    assert scorer.max_tokens == 512
    for groups in ([0] * 5, list(range(5))):
        expected = [by_transformers(folder, *pair) for pair in zip(PROMPTS, PREFIXES, strict=True)]
        assert_same(scorer.score(PROMPTS, PREFIXES, groups), expected)
    scorer.close()


def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    folder = str(tiny_qwen3(tmp_path))
    together = TokenScorerConfig(folder).load().score(PROMPTS, PREFIXES, [0] * 5)
    one_by_one = TokenScorerConfig(folder, batch_size=1).load().score(PROMPTS, PREFIXES, [0] * 5)
    assert_same(one_by_one, together)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "vlm"}, ConfigError, "unknown backend 'vlm'. Did you mean vllm?"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, expected at least 1"),
        ({"dtype": "float8"}, ConfigError, "dtype is 'float8', expected auto"),
        ({"device": "tpu"}, ConfigError, "device 'tpu' cannot be used here"),
        ({"backend": "vllm", "device": "cpu"}, ConfigError, "device is not for backend vllm"),
        ({"backend": "vllm", "batch_size": 4}, ConfigError, "batch_size is not for backend vllm"),
        ({"model": "no such model"}, BackendError, "unknown model 'no such model'"),
    ],
)
def test_bad_options_are_found_before_loading(
    options: dict[str, Any], error: type[FlipsearchError], message: str, tmp_path: Path
) -> None:
    config = TokenScorerConfig(**{"model": str(tiny_qwen3(tmp_path)), **options})
    with pytest.raises(error) as caught:
        config.check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_longest_prompt_on_vllm_is_part_of_the_identity_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (TokenScorerConfig(str(tiny_qwen3(tmp_path)), backend=name) for name in ("transformers", "vllm"))
    before = here.identity(), there.identity()
    monkeypatch.setattr("flipsearch.backends.transformers.VLLM_TOKENS", 4096)
    assert here.identity() == before[0]
    assert there.identity() != before[1]


def test_vllm_that_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="backend vllm is not installed: pip install"):
        TokenScorerConfig(str(tiny_qwen3(tmp_path)), backend="vllm").check()


def test_missing_weights_are_not_initialised_at_random(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"1 weights are missing .* the model would be random in part") as caught:
        TokenScorerConfig(str(folder)).load()
    assert "up_proj" in str(caught.value)
    assert "\n" not in str(caught.value)
