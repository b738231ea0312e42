"""Tiny random models with real tokenizers and real chat templates, built in a second and saved like any other model.

Random weights repeat themselves and rarely stop; the end token's output row is made longer so that both "stop" and
"length" occur. Nothing here is trained except the tokenizer's merges.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK_TOKENS = ["<think>", "</think>"]

CORPUS = [
    "You are a careful assistant. Think about what the request is for and then decide.",
    "How do I boil an egg? How do I fix a flat tyre? How do I plant a tree?",
    "Tell me a story about a garden, a river, a bridge and an old clock.",
    "What is the sum of 17 and 25? Step 1: add the ones. Step 2: add the tens.",
    "system user assistant The quick brown fox jumps over the lazy dog.",
]

QWEN3_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

PLAIN_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

NO_SYSTEM_TEMPLATE = (
    """\
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}
"""
    + PLAIN_TEMPLATE
)

DROPS_SYSTEM_TEMPLATE = PLAIN_TEMPLATE.replace("in messages %}", "in messages if message.role != 'system' %}")

DEFAULT_SYSTEM_TEMPLATE = (
    """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are Tiny.<|im_end|>\\n' }}{%- endif %}
"""
    + PLAIN_TEMPLATE
)

TRIM_TEMPLATE = PLAIN_TEMPLATE.replace("message.content", "(message.content | trim)")

DATED_TEMPLATE = "{{- 'Today is ' + strftime_now('%d %B %Y') + '.\\n' }}\n" + PLAIN_TEMPLATE

R1_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- message.content }}{%- endif %}
    {%- if message.role == 'user' %}{{- '<|im_start|>' + message.content + '<|im_end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<think>\\n' }}{%- endif %}"""


def tiny_tokenizer(chat_template: str | None = QWEN3_TEMPLATE, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on a few lines; think marks are tokens but not special, as in Qwen3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(THINK_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def guard_tokenizer(special: Sequence[str] = (), begin: str | None = None) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with the special tokens of a guard's own, and a begin token if it has one."""
    return _with_special_tokens(tiny_tokenizer(None), special, begin)


def sentencepiece_tokenizer(special: Sequence[str], begin: str, blank_first: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the kind of Llama 2's (which begins every text with a blank) or Gemma's (which does not).

    Blanks are letters, digits stand alone, and nothing splits the text before its merges.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)])
    alphabet = sorted(set("".join(CORPUS)) | set("▁\n0123456789"))
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(trained.to_str())["model"]
    rest = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = learnt["vocab"] | {text: len(learnt["vocab"]) + index for index, text in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in learnt["merges"]], byte_fallback=True))
    replaced = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *replaced] if blank_first else replaced)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_special_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer), special, begin)


def _with_special_tokens(
    tokenizer: PreTrainedTokenizerFast, special: Sequence[str], begin: str | None
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken(row, special=True) for row in special]})
    if begin is not None:
        tokenizer.add_special_tokens({"bos_token": begin})
        id = tokenizer.convert_tokens_to_ids(begin)
        template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, id)])
        tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def tiny_qwen3(
    folder: Path,
    *,
    chat_template: str | None = QWEN3_TEMPLATE,
    seed: int = 0,
    eos_scale: float = 2.0,
    hidden_size: int = 32,
    num_layers: int = 2,
    max_positions: int = 512,
    vocab_size: int = 400,
) -> Path:
    """Build a random Qwen3ForCausalLM with a trained tokenizer, save it in `folder` and return the folder."""
    tokenizer = tiny_tokenizer(chat_template, vocab_size)
    eos_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that vLLM decodes on a CPU
        max_position_embeddings=max_positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=eos_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[eos_id] *= eos_scale
    model.generation_config.eos_token_id = eos_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
