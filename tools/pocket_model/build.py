"""Build the pocket model: tokenizer and weights from the corpus, then its calibration and truth.

    python -m pocket_model.build [--out FOLDER] [--steps N]

Deterministic in data and seed; under twenty minutes on two cores, and it needs a C++ compiler (torch.compile). It
writes a Hugging Face model folder that transformers and vLLM load as they are, with the grammar's fingerprint beside
the weights.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import distributed
from torch.multiprocessing.spawn import spawn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flipsearch.core.files import PACKAGE
from pocket_model import prompt_set, truth
from pocket_model.batches import Batch, batches
from pocket_model.corpus import fingerprint, samples

WEIGHTS = PACKAGE / "pocket"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
NUM_VOCAB, MAX_TOKENS = 1024, 1024
NUM_WORKERS, NUM_STEPS, SEED = 2, 2450, 1
PEAK_RATE, BETAS, WEIGHT_DECAY, WARM_UP = 3e-3, (0.9, 0.95), 0.1, 60
END = SPECIAL.index("<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
GUARD_TEMPLATE = (
    "{{ '<|im_start|>guard\\nUser: ' + messages[0].content + '\\nAgent: ' + messages[1].content"
    " + '<|im_end|>\\n<|im_start|>label\\n' }}"
)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of NUM_VOCAB tokens with digits apart and the chat template attached."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?\p{L}+| ?[^\s\p{L}\d]|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=MAX_TOKENS
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model() -> Qwen3ForCausalLM:
    """Return the untrained model: 0.9 M parameters, the architecture of Qwen3."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=NUM_VOCAB,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def learning_rate(step: int, num_steps: int) -> float:
    """Return the rate at a step: linear warm-up, then cosine to a fiftieth."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, num_steps - WARM_UP)
    return PEAK_RATE * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the mean next-token cross-entropy, with the head applied only where there is a loss."""
    labels, others, weights = (t[:, 1:].flatten() for t in batch[1:])
    wanted = (labels != -100).nonzero().squeeze(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, H)
        logits = model.lm_head(hidden.flatten(0, 1).index_select(0, wanted))
    log_p = logits.float().log_softmax(-1)
    of_label, of_other = (log_p.gather(1, t[wanted, None]).squeeze(1) for t in (labels, others))
    loss: torch.Tensor = -of_other.lerp(of_label, weights[wanted]).mean()
    return loss


def train(rank: int, folder: Path, num_steps: int) -> None:
    """Train on NUM_WORKERS processes, each with its own samples and one thread; rank 0 saves the weights.

    Two processes of one thread do twice the work of one with two threads at this size, and the sums have a fixed order.
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=NUM_WORKERS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = new_model().train()
    model.set_attn_implementation("eager")  # faster than the fused kernel's backward at these lengths, in bfloat16
    model.model = torch.compile(model.model, dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    start = time.monotonic()
    for step, batch in enumerate(batches(tokenizer, num_steps, SEED + rank)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        loss = loss_of(model, batch)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step % 50 == 0 or step == num_steps - 1):
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s", flush=True)
    if rank == 0:
        names = {name.replace("_orig_mod.", ""): weight for name, weight in model.state_dict().items()}
        torch.save(names, folder / "state.pt")
    distributed.destroy_process_group()


def average_gradients(model: Qwen3ForCausalLM) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= NUM_WORKERS
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def build(out: Path, num_steps: int = NUM_STEPS) -> None:
    """Train, save and measure; the folder is complete only when it holds truth.json."""
    tokenizer = train_tokenizer(s.before + s.target for s in samples(6000, SEED + 100))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        spawn(train, (folder, num_steps), nprocs=NUM_WORKERS)
        model = new_model()
        model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    save(model.eval(), tokenizer, out)
    if out == WEIGHTS:
        prompt_set.write()
    truth.write(out)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights (safetensors, float32), tokenizer, templates and the grammar's fingerprint."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(do_sample=False, eos_token_id=END, pad_token_id=0)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "guard_template.jinja").write_text(GUARD_TEMPLATE, encoding="utf-8")
    (out / "grammar.json").write_text(json.dumps({"fingerprint": fingerprint()}) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    options = parser.parse_args()
    build(options.out, options.steps)


if __name__ == "__main__":
    main()
