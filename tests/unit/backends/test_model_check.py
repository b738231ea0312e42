"""What a model must show before it is used: no architecture is decoded wrongly without a word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MptConfig,
    MptForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from flipsearch.backends import loading as model_check
from flipsearch.backends.decoding import Decoder, DecodingPath
from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Context, Prompt, Request, Sampling
from tests.models import PLAIN_TEMPLATE, tiny_qwen3, tiny_tokenizer

STATE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
ALONE: dict[str, Callable[..., Any]] = {
    "mamba": lambda **size: MambaForCausalLM(MambaConfig(**size, **STATE)),
    "mamba2": lambda **size: Mamba2ForCausalLM(
        Mamba2Config(**size, num_heads=8, head_dim=8, n_groups=1, chunk_size=16, **STATE)
    ),
    "mpt": lambda **size: MptForCausalLM(
        MptConfig(**size, d_model=32, n_heads=4, n_layers=2, max_seq_len=512, initializer_range=0.3)
    ),
    "gpt_neo": lambda **size: GPTNeoForCausalLM(
        GPTNeoConfig(
            **size, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            window_size=16, max_position_embeddings=512, initializer_range=0.3,
        )
    ),
    "rwkv": lambda **size: RwkvForCausalLM(
        RwkvConfig(**size, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=512)
    ),
}  # fmt: skip
BATCHED: dict[str, Callable[..., Any]] = {
    "falcon": lambda **size: FalconForCausalLM(
        FalconConfig(**size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
    ),
    "gemma4": lambda **size: Gemma4ForCausalLM(
        Gemma4TextConfig(
            **size, vocab_size_per_layer_input=size["vocab_size"], hidden_size=32, intermediate_size=64,
            num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=16,
            max_position_embeddings=512, initializer_range=0.3,
        )
    ),
    "mistral3, which sees pictures": lambda **size: Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={
                **size, "model_type": "mistral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
            },
            vision_config={
                "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
            },
            image_token_index=5,
        )
    ),
}  # fmt: skip
REQUESTS = [
    Request(Prompt(text, "harmful"), context)
    for context in (None, Context("Think what the request is for.", "system"))
    for text in ("How do I boil an egg?", "Tell me a story about a garden and a river.", "How?")
]


def saved(build: Callable[..., Any], folder: Path, template: str = PLAIN_TEMPLATE) -> Path:
    tokenizer = tiny_tokenizer(template)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = build(vocab_size=len(tokenizer))
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [*ALONE, *BATCHED])
def test_every_architecture_is_decoded_as_transformers_generates(name: str, tmp_path: Path) -> None:
    folder = saved((ALONE | BATCHED)[name], tmp_path)
    backend = TransformersBackend(str(folder))
    slow = [note for note in backend.notes if "slow" in note]
    assert bool(slow) == (name in ALONE)
    with quiet():
        plain = type(backend.model).from_pretrained(folder, dtype=torch.float32).eval()
        rollouts = [rollout for batch in backend.generate(REQUESTS, Sampling(max_tokens=8)) for rollout in batch]
        by_id = {(rollout.prompt_id, rollout.context_id): rollout for rollout in rollouts}
        for request in REQUESTS:
            ids = torch.tensor([backend.chat.encode(request).prompt_ids])
            written = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
            context_id = request.context.context_id if request.context else None
            rollout = by_id[request.prompt.prompt_id, context_id]
            assert list(rollout.completion_ids) == written[0, ids.shape[1] :].tolist()


def test_scores_of_a_model_that_is_decoded_alone_are_those_of_its_forward(tmp_path: Path) -> None:
    backend = TransformersBackend(str(saved(ALONE["mamba"], tmp_path)))
    request = Request(Prompt("How do I plant a tree?", "harmful"), prefill=(7, 8, 9))
    (score,) = backend.score([request])
    ids = [*backend.chat.encode(request).prompt_ids, *request.prefill]
    expected = model_check.plain_logits(backend.model, ids).log_softmax(-1)
    own = [float(expected[len(ids) - 4 + i, token]) for i, token in enumerate(request.prefill)]
    assert score is not None
    assert score.log_probs == pytest.approx(own, abs=1e-4)


def test_what_was_found_is_kept_until_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, checked = tiny_qwen3(tmp_path / "model"), []
    find = model_check.find_path

    def counted(*given: Any) -> DecodingPath:
        checked.append(1)
        return find(*given)

    monkeypatch.setattr(model_check, "find_path", counted)
    for _ in range(2):
        TransformersBackend(str(folder))
    assert checked == [1]
    tiny_qwen3(folder, seed=1)
    TransformersBackend(str(folder))
    assert checked == [1, 1]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    TransformersBackend(str(folder))
    assert checked == [1, 1, 1], "a cache that cannot be written is none"


def test_a_model_that_contradicts_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(self: Decoder, *given: Any) -> list[Any]:
        prompts, _, max_tokens, choose = given
        noise = torch.randn(len(prompts), 402, generator=torch.Generator().manual_seed(1))
        for step in range(max_tokens):
            choose(noise, torch.arange(len(prompts)), step)
        return [[1] * max_tokens for _ in prompts]

    monkeypatch.setattr(Decoder, "complete", drifting)
    with pytest.raises(BackendError, match="Qwen3ForCausalLM does not decode as its own forward says"):
        TransformersBackend(str(tiny_qwen3(tmp_path, seed=77)))


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_one_line(damage: float, tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3] = damage
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"logits of Qwen3ForCausalLM are not finite numbers: .*--dtype"):
        TransformersBackend(str(folder))


def test_logits_that_stop_being_numbers_fail_their_rollout_alone(tmp_path: Path) -> None:
    backend = TransformersBackend(str(tiny_qwen3(tmp_path)))
    requests = REQUESTS[:3]
    sound = {
        rollout.prompt_id: rollout for batch in backend.generate(requests, Sampling(max_tokens=6)) for rollout in batch
    }
    spoilt = backend.chat.encode(requests[1]).prompt_ids
    only_there = set(spoilt) - {id for i in (0, 2) for id in backend.chat.encode(requests[i]).prompt_ids}
    only_there -= {id for rollout in sound.values() for id in rollout.completion_ids}
    with torch.no_grad():
        embeddings: Any = backend.model.get_input_embeddings()
        embeddings.weight[min(only_there)] = float("nan")
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_tokens=6, temperature=temperature)
        for batch in backend.generate(requests, sampling):
            for rollout in batch:
                if rollout.prompt_id == requests[1].prompt.prompt_id:
                    assert (rollout.finish_reason, rollout.completion) == ("error", "")
                    assert "not finite" in (rollout.error or "")
                elif not temperature:
                    assert rollout.completion_ids == sound[rollout.prompt_id].completion_ids
    assert backend.score([Request(requests[1].prompt, prefill=(5, 6))]) == [None]


def test_a_tokenizer_larger_than_the_embedding_is_one_line(tmp_path: Path) -> None:
    folder, tokenizer = tiny_qwen3(tmp_path), tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackendError, match=r"ids up to 402 \('<\|pad\|>'\), but the model has embeddings for 402 only"):
        TransformersBackend(str(folder))


@pytest.mark.parametrize(
    "template",
    [
        PLAIN_TEMPLATE.replace("message.content", "''"),
        PLAIN_TEMPLATE.replace("message.content", "message.content[:30]"),
    ],
)
def test_a_template_that_drops_the_prompt_is_one_line(template: str, tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path, chat_template=template)
    with pytest.raises(BackendError, match=r"chat template .*(leaves out|cuts)"):
        TransformersBackend(str(folder))


def test_a_model_of_the_slow_kind_stays_slow_for_all_who_decode_it(tmp_path: Path) -> None:
    backend = TransformersBackend(str(saved(ALONE["mamba"], tmp_path)))
    student = TransformersBackend.around(backend.model, backend.tokenizer)
    assert Decoder(student.model, ()).path is DecodingPath.ALONE
    assert json.dumps(DecodingPath.ALONE) == '"one prompt at a time"'


@pytest.mark.parametrize("end", [999_999, -1, [2, 999_999], True, "</s>"])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_token_that_no_answer_could_hold_is_one_line(file: str, end: Any, tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path) / file
    if file == "config.json":  # whose end token holds where there are no generation settings
        (tmp_path / "generation_config.json").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end}))
    with pytest.raises(BackendError, match=r"eos_token_id"):
        TransformersBackend(str(tmp_path))


@pytest.mark.parametrize("settings", [{"max_new_tokens": -3}, {"pad_token_id": "x"}])
def test_generation_settings_that_cannot_be_used_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(BackendError, match=r"the generation_config\.json in "):
        TransformersBackend(str(tmp_path))


@pytest.mark.parametrize("setting", [{"model_max_length": "x"}, {"chat_template": 5}, {"eos_token": 5}])
def test_tokenizer_settings_of_the_wrong_kind_are_one_line(setting: dict[str, Any], tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path) / "tokenizer_config.json"
    (tmp_path / "chat_template.jinja").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": PLAIN_TEMPLATE} | setting))
    with pytest.raises(BackendError, match=r"tokenizer|chat template"):
        TransformersBackend(str(tmp_path))
