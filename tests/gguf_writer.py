"""A tiny random Llama as a GGUF file, written with the package gguf as llama.cpp's converter writes one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models import PLAIN_TEMPLATE, tiny_tokenizer

NUM_HEADS, NUM_GROUPS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(**options: Any) -> LlamaForCausalLM:
    tokenizer = tiny_tokenizer(PLAIN_TEMPLATE)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_GROUPS,
        "initializer_range": 0.3,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **heads, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    *,
    quantization: str = "F32",
    splits: str = "smollm",
    architecture: str = "llama",
    more: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """Write a model with the tests' tokenizer; `more` are further tensors."""
    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_GROUPS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = tiny_tokenizer(PLAIN_TEMPLATE)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 4 if "think" in token else 1 for token in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(PLAIN_TEMPLATE)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        for heads, part in ((NUM_HEADS, "q_proj"), (NUM_GROUPS, "k_proj")):
            if part in name:  # pairs of rotary dimensions side by side
                halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        base = name.removesuffix(".weight")
        layer, _, part = base.removeprefix("model.layers.").partition(".")
        renamed = f"{NAMES[base]}.weight" if base in NAMES else f"blk.{layer}.{NAMES[part]}.weight"
        if weight.ndim > 1 and quantization != "F32":
            writer.add_tensor(renamed, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(renamed, weight)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
