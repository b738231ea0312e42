"""What a model must show before it is used: its weights are whole, and it decodes as its own plain forward says.

Whole architectures decode wrongly in silence when their state is handed on under another name, or when padding shifts
their positions. So the way of decoding is found by trying: batches with shared prefixes, else one prompt at a time
with the model's own cache, else no cache at all; the first one whose logits are those of a plain forward is taken. A
model that agrees with itself in none is refused. What was found is kept in the cache by content and versions.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flipsearch.backends.chat import Chat
from flipsearch.backends.decoding import Decoder, DecodingPath, Ids, shared_prefixes
from flipsearch.backends.loading import is_out_of_memory, load_config, load_generation_settings, load_model
from flipsearch.backends.models import ModelFiles
from flipsearch.backends.rollouts import end_ids
from flipsearch.core.errors import BackendError, one_line
from flipsearch.core.files import cache_folder, package_versions, write_text
from flipsearch.core.records import PLACEMENTS, Context, Prompt, Request, content_id

CHECK_VERSION = 1
"""Part of what a kept result holds for."""
PACKAGES = ("torch", "transformers")
TEXTS = (
    "How do I boil an egg?",
    "Tell me a long story about a garden, a river, a bridge and an old clock, which begins in the morning.",
    "What is the sum of 17 and 25?",
    "Name a colour.",
)
SHARED_TEXT = "You are a careful assistant. Think what the request is for. "
NEW_TOKENS = 4
ENDS_AT = 1
"""Step at which one row of a batch is made to end, so that rows leave the batch and its cache."""
TOLERANCES = {torch.float32: 2e-3, torch.float16: 0.03, torch.bfloat16: 0.08}
"""Largest error of the logits, relative to their spread; below float32 the median over a row's steps is compared,
because rounding can send a token to another expert."""
PATH_NOTES = {
    DecodingPath.BATCHED: (),
    DecodingPath.ALONE: ("this model decodes rightly only one prompt at a time, which is slow.",),
    DecodingPath.UNCACHED: (
        "this model decodes rightly only without a cache: all is computed anew for each token, which is very slow.",
    ),
}


def load_checked_model(files: ModelFiles, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return a loaded model that keeps the way in which it decodes rightly; BackendError if there is none."""
    check_vocabulary(tokenizer, files.folder)
    model = load_model(files.folder, device, dtype)
    versions = package_versions(PACKAGES)
    key = content_id("check", CHECK_VERSION, files.fingerprint, str(dtype), device.type, sorted(versions.items()))
    kept = cache_folder("checks") / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        DecodingPath(json.loads(kept.read_text(encoding="utf-8"))["path"]).keep_on(model)
        return model
    try:
        path = find_path(model, tokenizer)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        raise BackendError(
            f"the model in '{files.folder}' fits on {device}, but leaves no memory for four short prompts; "
            "give a smaller model, or another --dtype."
        ) from error
    path.keep_on(model)
    with suppress(BackendError):  # a cache that cannot be written costs a second at each start
        write_text(kept, json.dumps({"path": path.value}), BackendError)
    return model


def check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Raise BackendError if the tokenizer or the settings name an id for which the model has no embedding."""
    num_rows = getattr(load_config(folder).get_text_config(decoder=True), "vocab_size", None)
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    if isinstance(num_rows, int) and vocabulary[last] >= num_rows:
        raise BackendError(
            f"the tokenizer in '{folder}' has token ids up to {vocabulary[last]} ({last!r}), but the model has "
            f"embeddings for {num_rows} only: they are not of one model, or tokens were added to the tokenizer alone; "
            "resize the model's embeddings (resize_token_embeddings) and save it again."
        )
    ends = end_ids(load_generation_settings(folder), tokenizer)
    if isinstance(num_rows, int) and (odd := sorted(id for id in ends if not 0 <= id < num_rows)):
        raise BackendError(
            f"the model in '{folder}' is to end with token {odd[0]}, but its tokens are 0 to {num_rows - 1}: no answer "
            "would end there; mend eos_token_id in its generation_config.json or config.json."
        )


def check_template(chat: Chat) -> None:
    """Raise BackendError if a prompt, or a context anywhere, is not in the tokens that the model is given."""
    text = TEXTS[1]
    for placement in (None, *PLACEMENTS):
        context = Context(SHARED_TEXT.strip(), placement) if placement else None
        shown = _squeezed(chat.decode(chat.encode(Request(Prompt(text, "harmful"), context)).prompt_ids))
        for what, part in (("the prompt", text), ("the context", context.text if context else "")):
            if _squeezed(chat.respelled(part)) not in shown:
                where = f" with a context placed {placement}" if placement else ""
                raise BackendError(
                    f"the model's chat template leaves out or changes {what}{where}: it would answer something else; "
                    "mend chat_template.jinja in its folder."
                )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def find_path(model: PreTrainedModel, tokenizer: Any) -> DecodingPath:
    """Return the fastest way of decoding whose logits are those of a plain forward; BackendError if there is none."""
    # With the special tokens that the tokenizer adds by itself: some models need their begin token.
    prompts = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    shared = [list(tokenizer(SHARED_TEXT + text)["input_ids"]) for text in TEXTS]
    name = type(model).__name__
    try:
        plain = plain_logits(model, prompts[1])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BackendError(f"{name} cannot compute a prompt: {type(error).__name__}: {one_line(error)}.") from error
    if not bool(plain.amax(-1).isfinite().all()):
        raise BackendError(
            f"the logits of {name} are not finite numbers: its weights are damaged, or too large for "
            f"{str(model.dtype).removeprefix('torch.')}; download it again, or give another --dtype."
        )
    for path in DecodingPath:
        decoder = Decoder(model, {int(plain[-1].argmin())}, path)
        with suppress(DisagreementError):
            # The longest alone, all four in a batch, and four that begin alike.
            for batch in ([prompts[1]], prompts, shared) if path is DecodingPath.BATCHED else (prompts,):
                _compare(decoder, batch)
            return path
    raise BackendError(
        f"{name} does not decode as its own forward says, in batches, alone or without a cache; "
        "use another model, or --backend vllm."
    )


def plain_logits(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    """Return the float32 logits (T, V) of one sequence, computed without batch, padding, positions and cache."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    return logits[0].float()


class DisagreementError(Exception):
    """A way of decoding gives other logits than a plain forward, or cannot be taken at all."""


def _compare(decoder: Decoder, prompts: Sequence[Ids]) -> None:
    """Raise DisagreementError unless greedy decoding has the logits of a plain forward at every step."""
    seen: list[list[torch.Tensor]] = [[] for _ in prompts]

    def choose(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        for row, row_logits in zip(rows.tolist(), logits, strict=True):
            seen[row].append(row_logits)
        tokens = logits.argmax(-1)
        if step == ENDS_AT and len(prompts) > 1:
            tokens = torch.where(rows == 1, decoder.eos_ids[0], tokens)
        return tokens

    try:
        completions = decoder.complete(prompts, shared_prefixes(prompts, [0] * len(prompts)), NEW_TOKENS, choose)
    except Exception as error:  # models raise whatever a cache of another kind makes them do
        if is_out_of_memory(error):
            raise
        raise DisagreementError from error
    for prompt, completion, steps in zip(prompts, completions, seen, strict=True):
        if completion is None:
            raise DisagreementError
        expected = plain_logits(decoder.model, [*prompt, *completion])[len(prompt) - 1 : -1]
        errors = _relative_errors(torch.stack(steps[: len(completion)]), expected)
        exact = decoder.model.dtype == torch.float32
        largest = float(errors.max() if exact else errors.median())
        if not largest <= TOLERANCES.get(decoder.model.dtype, 0.05):
            raise DisagreementError


def _relative_errors(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return for each step (C,) the error of `logits` (C, V) as a share of the spread of the `expected` ones."""
    possible = expected.isfinite()  # some models rule tokens out with -inf
    error = torch.where(possible, logits - expected, 0)
    spread = torch.where(possible, expected - torch.where(possible, expected, 0).mean(-1, keepdim=True), 0)
    relative: torch.Tensor = error.norm(dim=-1) / spread.norm(dim=-1)
    return relative
