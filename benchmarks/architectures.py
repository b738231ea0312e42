"""Which architectures decode as transformers says: tiny random models of each, greedy, against plain `generate`.

    python benchmarks/architectures.py [NAME ...]

Each is built, saved and loaded as a user's model is, so that the check at load decides how it is decoded. Its greedy
completions, in batches with and without a context, are then compared with those of `generate`, one prompt at a time.
Prints a table: right, right but slow (one prompt at a time, or without a cache), refused, or WRONG.
"""

import datetime
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from flipsearch.backends.decoding import DecodingPath
from flipsearch.backends.loading import quiet
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.errors import BackendError, one_line
from flipsearch.core.records import Context, Prompt, Request, Sampling
from tests.models import PLAIN_TEMPLATE, tiny_tokenizer

PROMPTS = (
    "How do I boil an egg?",
    "Tell me a story about a garden, a river, a bridge and an old clock. Think about what the request is for.",
    "What is the sum of 17 and 25?",
    "How do I plant a tree?",
)
CONTEXT = Context("You are a careful assistant. Think about what the request is for and then decide.", "system")
SAMPLING = Sampling(max_tokens=16)
PATHS = {DecodingPath.BATCHED: "right", DecodingPath.ALONE: "one by one", DecodingPath.UNCACHED: "no cache"}

BASE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
GROUPED = {**BASE, "intermediate_size": 64, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
STATE = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
WINDOW = {"sliding_window": 16}
HYBRID = ["mamba", "attention", "mamba", "attention"]

Options = Mapping[str, Any]
ARCHITECTURES: dict[str, tuple[str, Options]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": None}),
    "mistral, windows": ("Mistral", {**GROUPED, **WINDOW}),
    "ministral": ("Ministral", {**WIDE, **WINDOW}),
    "mixtral": ("Mixtral", {**GROUPED, **EXPERTS}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2, windows": ("Qwen2", {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe": ("Qwen2Moe", {**GROUPED, **MANY, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3", WIDE),
    "qwen3_moe": ("Qwen3Moe", {**WIDE, **MANY, "decoder_sparse_step": 1}),
    "qwen3_next": ("Qwen3Next", {**WIDE, **MANY, **LINEAR, "shared_expert_intermediate_size": 32}),
    "qwen3_5": ("Qwen3_5", {**WIDE, **LINEAR}),
    "gemma": ("Gemma", WIDE),
    "gemma2": ("Gemma2", {**WIDE, **WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {**WIDE, **WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3n": (
        "Gemma3n",
        {
            **WIDE, **WINDOW, "num_kv_shared_layers": 2, "laurel_rank": 4, "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 402, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma4": ("Gemma4", {**WIDE, **WINDOW, "vocab_size_per_layer_input": 402}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "lru_width": 32, "attention_window_size": 16,
        },
    ),
    "phi": ("Phi", {**BASE, "intermediate_size": 64}),
    "phi3": ("Phi3", {**GROUPED, "original_max_position_embeddings": 512}),
    "phi3, windows": ("Phi3", {**GROUPED, **WINDOW}),
    "phimoe": ("Phimoe", {**GROUPED, **EXPERTS}),
    "gpt2": ("GPT2", OLD),
    "gpt_bigcode": ("GPTBigCode", OLD),
    "gptj": ("GPTJ", {**OLD, "rotary_dim": 4}),
    "codegen": ("CodeGen", {**OLD, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
            "window_size": 16, "max_position_embeddings": 512,
        },
    ),
    "gpt_neox": ("GPTNeoX", {**BASE, "intermediate_size": 64}),
    "gpt_neox_japanese": ("GPTNeoXJapanese", {**BASE, "intermediate_multiple_size": 2}),
    "gpt_oss": ("GptOss", {**WIDE, **EXPERTS, **WINDOW}),
    "opt": ("OPT", {**BASE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon, rotary": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False}),
    "falcon, alibi": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True}),
    "falcon_h1": ("FalconH1", {**GROUPED, **MAMBA2, "mamba_d_ssm": 64}),
    "falcon_mamba": ("FalconMamba", STATE),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}),
    "stablelm": ("StableLm", GROUPED),
    "olmo": ("Olmo", GROUPED),
    "olmo2": ("Olmo2", GROUPED),
    "olmo3": ("Olmo3", {**GROUPED, **WINDOW}),
    "olmoe": ("Olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("Granite", {**GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "granitemoe": ("GraniteMoe", {**GROUPED, **EXPERTS}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **GROUPED, **MAMBA2, "layer_types": HYBRID, "layers_block_type": HYBRID, "num_local_experts": 0,
            "shared_intermediate_size": 64,
        },
    ),
    "cohere": ("Cohere", {**GROUPED, "logit_scale": 0.25}),
    "cohere2": ("Cohere2", {**GROUPED, **WINDOW, "logit_scale": 0.25}),
    "starcoder2": ("Starcoder2", {**GROUPED, **WINDOW}),
    "smollm3": ("SmolLM3", GROUPED),
    "glm": ("Glm", WIDE),
    "glm4": ("Glm4", WIDE),
    "glm4_moe": ("Glm4Moe", {**WIDE, **ROUTED}),
    "deepseek_v2": ("DeepseekV2", {**GROUPED, **ROUTED, **LATENT, "num_key_value_heads": 4}),
    "deepseek_v3": ("DeepseekV3", {**GROUPED, **ROUTED, **LATENT, "num_key_value_heads": 4}),
    "exaone4": ("Exaone4", {**GROUPED, **WINDOW, "sliding_window_pattern": 2}),
    "helium": ("Helium", WIDE),
    "ernie4_5": ("Ernie4_5", WIDE),
    "seed_oss": ("SeedOss", WIDE),
    "nemotron": ("Nemotron", GROUPED),
    "arcee": ("Arcee", GROUPED),
    "apertus": ("Apertus", GROUPED),
    "hunyuan": ("HunYuanDenseV1", WIDE),
    "llama4": (
        "Llama4",
        {**WIDE, **EXPERTS, "intermediate_size_mlp": 64, "num_experts_per_tok": 1, "attention_chunk_size": 16},
    ),
    "minimax": ("MiniMax", {**WIDE, **EXPERTS, "block_size": 16}),
    "bitnet": ("BitNet", GROUPED),
    "persimmon": ("Persimmon", {**BASE, "intermediate_size": 64}),
    "mamba": ("Mamba", STATE),
    "mamba2": ("Mamba2", {**STATE, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 16}),
    "jamba": (
        "Jamba",
        {
            **GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
            "mamba_d_state": 8, "mamba_expand": 2, "use_mamba_kernels": False,
        },
    ),
    "bamba": ("Bamba", {**GROUPED, **MAMBA2, "attn_layer_indices": [1]}),
    "lfm2": ("Lfm2", {**GROUPED, "full_attn_idxs": [1, 3]}),
    "rwkv": ("Rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3, "context_length": 512}),
}  # fmt: skip

VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
LAYERS = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
SIZES = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32, "intermediate_size": 128}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
ARCHITECTURES |= {
    f"{name}, with pictures": (base, {"text_config": text, "vision_config": vision, **more})
    for name, base, text, vision, more in (
        ("mistral3", "Mistral3", {"model_type": "mistral", **WIDE, "sliding_window": None},
         {"model_type": "pixtral", **VISION, "head_dim": 16}, {"image_token_index": 5}),
        ("llava", "Llava", {"model_type": "llama", **GROUPED}, {"model_type": "clip_vision_model", **VISION},
         {"image_token_index": 5}),
        ("qwen2_5_vl", "Qwen2_5_VL", {**GROUPED, **SECTIONS}, {**LAYERS, "fullatt_block_indexes": [0]}, {}),
        ("qwen3_5", "Qwen3_5", ARCHITECTURES["qwen3_5"][1], {**LAYERS, "deepstack_visual_indexes": []}, {}),
        ("gemma3", "Gemma3", ARCHITECTURES["gemma3"][1], VISION, {"image_token_index": 5, "mm_tokens_per_image": 4}),
        ("llama4", "Llama4", ARCHITECTURES["llama4"][1], {**VISION, **SIZES}, {}),
    )
}  # fmt: skip
"""The text parts of models that see pictures too, saved whole."""


def build(base: str, options: Options, folder: Path) -> None:
    """Save a random model of an architecture with the tokenizer of the tests."""
    tokenizer = tiny_tokenizer(PLAIN_TEMPLATE)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if "text_config" in options:
        text = {**options["text_config"], **special, "vocab_size": len(tokenizer), "initializer_range": 0.3}
        config = getattr(transformers, f"{base}Config")(**{**options, "text_config": text})
        model_class = getattr(transformers, f"{base}ForConditionalGeneration")
    else:
        config_class = getattr(transformers, f"{base}TextConfig", None) or getattr(transformers, f"{base}Config")
        model_class = getattr(transformers, "GPT2LMHeadModel" if base == "GPT2" else f"{base}ForCausalLM")
        spread = {name: 0.3 for name in ("initializer_range", "init_std") if name in config_class().to_dict()}
        config = config_class(vocab_size=len(tokenizer), **special, **spread, **options)
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def outcome(base: str, options: Options, folder: Path) -> str:
    """Return how an architecture fares, in a few words."""
    try:
        build(base, options, folder)
    except Exception as error:
        return f"not built ({type(error).__name__}: {one_line(error, 60)})"
    try:
        backend = TransformersBackend(str(folder), device="cpu", dtype="float32")
    except BackendError as error:
        return f"refused: {one_line(error, 120)}"
    kind = transformers.AutoModelForImageTextToText if "text_config" in options else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [Prompt(text, "harmful") for text in PROMPTS]
    requests = [Request(prompt, context) for context in (None, CONTEXT) for prompt in prompts]
    answers = {
        (rollout.prompt_id, rollout.context_id): list(rollout.completion_ids)
        for batch in backend.generate(requests, SAMPLING)
        for rollout in batch
    }
    num_wrong = 0
    for request in requests:
        ids = torch.tensor([backend.chat.encode(request).prompt_ids])
        with torch.no_grad():
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=SAMPLING.max_tokens
            )
        key = request.prompt.prompt_id, request.context.context_id if request.context else None
        num_wrong += answers[key] != written[0, ids.shape[1] :].tolist()
    path = PATHS[DecodingPath.of(backend.model)]
    return f"WRONG: {num_wrong} of {len(requests)} differ ({path})" if num_wrong else path


def main() -> None:
    """Print the table, a row as soon as it is known; exit code 1 if any architecture is wrong."""
    names = sys.argv[1:] or list(ARCHITECTURES)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {datetime.date.today()}\n")
    print("| architecture | decoded |\n|---|---|")
    wrong = False
    for name in names:
        with tempfile.TemporaryDirectory() as folder, quiet():
            result = outcome(*ARCHITECTURES[name], Path(folder))
        wrong |= result.startswith("WRONG")
        print(f"| {name} | {result} |", flush=True)
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
