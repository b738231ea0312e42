"""Rollouts made out of requests: every backend fills in the ids the same way.

Local models through transformers, on a CPU or a GPU.

Requests are sorted by length and decoded in batches. When memory runs out the batch is halved and decoded again. In
float32 a greedy completion is the same whatever its batch; in lower precision sums of another order can tip a near tie.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flipsearch.backends.chat import Chat, EncodedPrompt, Thinking
from flipsearch.backends.decoding import Decoder, Ids, chooser, shared_prefixes
from flipsearch.backends.loading import (
    choose_device,
    choose_dtype,
    free_memory,
    is_out_of_memory,
    load_model,
    load_tokenizer,
    max_positions,
    memory_bytes,
)
from flipsearch.backends.model_files import locate
from flipsearch.backends.rollouts import completed, failed
from flipsearch.backends.scoring import read_all
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import PrefixScore, Request, Rollout, Sampling, content_id

MOST_ROWS = {True: 192, False: 64}
"""Rows of a batch on a CPU and on anything else, where the caller leaves it open."""
CACHE_SHARE = 1 / 4
"""Share of the machine's memory that a CPU batch's keys and values may take: out of memory cannot be caught there."""


@dataclass(slots=True)
class Waiting:
    """An encoded request."""

    request: Request
    prompt: EncodedPrompt
    num_shared: int = 0
    """Leading tokens that all requests under its context share."""


class TransformersBackend:
    """A causal language model from a local folder or the hub, decoded by flipsearch's own loop.

    `batch_size` None chooses by device. Raises BackendError for a model that cannot be loaded and ConfigError for an
    option that cannot be used, both before any weights are read where that can be known.
    """

    resumes_sampling = True
    """The draws of an answer are the same whether it is written at once or goes on from its beginning."""

    def __init__(
        self,
        model: str,
        *,
        thinking: Thinking = "auto",
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        files = locate(model)
        tokenizer = load_tokenizer(files.folder)
        chat = Chat(tokenizer, thinking)
        self.model_id = content_id("model", files.fingerprint, chat.identity, str(chosen_dtype))
        self._set_up(load_model(files.folder, chosen_device, chosen_dtype), tokenizer, chat, batch_size, files.revision)

    @classmethod
    def around(cls, model: PreTrainedModel, tokenizer: Any, *, thinking: Thinking = "auto") -> "TransformersBackend":
        """Return the backend of a model that is already loaded and may be trained meanwhile, so it has no identity."""
        backend = cls.__new__(cls)
        backend.model_id = ""
        backend._set_up(model, tokenizer, Chat(tokenizer, thinking), None, None)
        return backend

    def _set_up(
        self, model: PreTrainedModel, tokenizer: Any, chat: Chat, batch_size: int | None, revision: str | None
    ) -> None:
        self.model, self.tokenizer, self.chat, self.batch_size = model, tokenizer, chat, batch_size
        self.notes, self.revision = chat.notes, revision
        self.max_positions = max_positions(model.config)
        self._decoder = Decoder(model, end_ids(model.generation_config, tokenizer))

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in the model's tokens."""
        return self.chat.count_tokens(text)

    def close(self) -> None:
        """Free the weights, on a GPU the device's memory too."""
        del self.model, self._decoder
        free_memory()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout a request, batch by batch, longest prompts first."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens is {sampling.max_tokens}, expected at least 1.")
        waiting: list[Waiting] = []
        for request in requests:
            try:
                waiting.append(Waiting(request, self._encode(request, sampling.max_tokens)))
            except BackendError as error:
                yield [failed(request, self.model_id, sampling, str(error))]
        for num_forced in sorted({len(item.request.prefill) for item in waiting}):
            alike = [item for item in waiting if len(item.request.prefill) == num_forced]
            yield from self._generate(_in_order(alike), sampling)

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return how likely the model finds each request's opening, in order; None for one too long for it."""
        encoded: dict[int, EncodedPrompt] = {}
        for index, request in enumerate(requests):
            with contextlib.suppress(BackendError):
                encoded[index] = self._encode(request, len(request.prefill))
        asked = [requests[index] for index in encoded]
        prefix_scores = read_all(
            self._decoder,
            [prompt.prompt_ids for prompt in encoded.values()],
            [request.prefill for request in asked],
            [_group(request) for request in asked],
        )
        found = dict(zip(encoded, prefix_scores, strict=True))
        return [found.get(index) for index in range(len(requests))]

    def _generate(self, queue: list[Waiting], sampling: Sampling) -> Iterator[list[Rollout]]:
        while queue:
            size = self.batch_size or self._batch_size(queue, sampling)
            batch, queue = queue[:size], queue[size:]
            try:
                rollouts = self._complete(batch, sampling)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                if len(batch) > 1:
                    self.batch_size, queue = len(batch) // 2, batch + queue
                    rollouts = []
                else:
                    reason = f"out of memory with a single prompt of {len(batch[0].prompt.prompt_ids)} tokens"
                    rollouts = [failed(batch[0].request, self.model_id, sampling, reason)]
            if rollouts:
                yield rollouts
            else:  # outside the handler: the error's traceback held the batch's tensors
                free_memory()

    def _encode(self, request: Request, max_tokens: int) -> EncodedPrompt:
        prompt = self.chat.encode(request)
        length = len(prompt.prompt_ids)
        if self.max_positions is not None and length + max_tokens > self.max_positions:
            raise BackendError(
                f"the prompt has {length} tokens and max_tokens is {max_tokens}, but the model holds "
                f"{self.max_positions}; lower max_tokens or shorten the context. Nothing is cut off silently."
            )
        if len(request.prefill) > max_tokens:
            raise BackendError(f"the opening has {len(request.prefill)} tokens, but max_tokens is {max_tokens}.")
        return prompt

    def _complete(self, batch: Sequence[Waiting], sampling: Sampling) -> list[Rollout]:
        requests = [waiting.request for waiting in batch]
        num_forced = len(requests[0].prefill)
        prompts: list[Ids] = [waiting.prompt.prompt_ids + waiting.request.prefill for waiting in batch]
        choose = chooser(requests, sampling, self._decoder.device, num_forced)
        shared = [waiting.num_shared for waiting in batch]
        completions = self._decoder.complete(prompts, shared, sampling.max_tokens - num_forced, choose)
        return [self._rollout(waiting, sampling, ids) for waiting, ids in zip(batch, completions, strict=True)]

    def _rollout(self, waiting: Waiting, sampling: Sampling, written: Ids) -> Rollout:
        ids = (*waiting.request.prefill, *written)
        return completed(
            waiting.request,
            self.model_id,
            sampling,
            waiting.prompt,
            completion=self.chat.decode(ids),
            completion_ids=ids,
            stopped=self._decoder.ends(ids),
        )

    def _batch_size(self, queue: Sequence[Waiting], sampling: Sampling) -> int:
        on_cpu = self._decoder.device.type == "cpu"
        most = MOST_ROWS[on_cpu]
        if on_cpu:
            num_tokens = max(len(waiting.prompt.prompt_ids) for waiting in queue) + sampling.max_tokens
            row_bytes = num_tokens * _cache_bytes(self.model.config, self.model.dtype)
            most = max(1, min(most, int(CACHE_SHARE * memory_bytes() / row_bytes)))
        # Even batches: 150 requests are two of 75, not one of 128 and a slow small one.
        return math.ceil(len(queue) / math.ceil(len(queue) / most))


def end_ids(generation_config: object, tokenizer: object) -> set[int]:
    """Return the token ids that end a completion, of the generation config and of the tokenizer."""
    found: set[int] = set()
    for source in (generation_config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return found


def _in_order(waiting: Sequence[Waiting]) -> list[Waiting]:
    """Return longest first (out of memory then shows at once), requests with like shared prefixes together."""
    prompts: list[Ids] = [item.prompt.prompt_ids for item in waiting]
    prefixes = shared_prefixes(prompts, [_group(item.request) for item in waiting])
    for item, prefix in zip(waiting, prefixes, strict=True):
        item.num_shared = prefix
    return sorted(waiting, key=lambda item: (item.num_shared, len(item.prompt.prompt_ids)), reverse=True)


def _group(request: Request) -> str | None:
    """Return what requests have in common whose prompts begin alike: the context."""
    return request.context.context_id if request.context else None


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    return config.get_text_config(decoder=True)


def _cache_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values a token."""
    text = _text_config(config)
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * num_heads * width * dtype.itemsize)
