"""Local models through transformers, on a CPU or a GPU.

Requests are sorted by length and decoded in batches. When memory runs out, the batch is halved and decoded again. In
float32 a greedy completion is the same whatever its batch; in lower precision rounding can tip a near tie.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from flipsearch.backends.chat import Chat, Thinking
from flipsearch.backends.decoding import Decoder, DecodingPath, chooser, shared_prefixes
from flipsearch.backends.loading import (
    choose_device,
    choose_dtype,
    free_memory,
    is_out_of_memory,
    load_tokenizer,
    max_positions,
    memory_bytes,
)
from flipsearch.backends.model_check import PATH_NOTES, check_template, load_checked_model
from flipsearch.backends.models import locate, model_source
from flipsearch.backends.rollouts import EncodedRequest, LocalBackend, end_ids, failed
from flipsearch.backends.scoring import score_prefixes
from flipsearch.config import ModelConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.records import PrefixScore, Rollout, Sampling, content_id

NOT_FINITE = "the model's logits are not finite numbers; give another --dtype if this happens often"
MAX_ROWS = {True: 192, False: 64}
"""Rows per batch on a CPU and on anything else, where no batch size is given."""
CACHE_SHARE = 1 / 4
"""Share of the machine's memory for the keys and values of a batch on a CPU, where running out cannot be caught."""
ROWS_ALONE = 8
"""Rows per batch of a model that decodes one prompt at a time: each batch is saved when it is done."""


class TransformersBackend(LocalBackend):
    """A causal language model from a local folder or the hub, decoded by flipsearch's own loop.

    `batch_size` None chooses by device. Raises BackendError for a model that cannot be loaded and ConfigError for an
    option that cannot be used, both before any weights are read where possible.
    """

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
        check_template(chat)
        self.model_id = content_id("model", files.fingerprint, chat.identity, str(chosen_dtype))
        loaded = load_checked_model(files, tokenizer, chosen_device, chosen_dtype)
        self._set_up(loaded, tokenizer, chat, batch_size, files.revision)
        self.notes += files.notes + PATH_NOTES[DecodingPath.of(loaded)]

    @classmethod
    def around(cls, model: PreTrainedModel, tokenizer: Any, *, thinking: Thinking = "auto") -> "TransformersBackend":
        """Return a backend for a loaded model that may be trained meanwhile, and so has no identity."""
        backend = cls.__new__(cls)
        backend.model_id = ""
        backend._set_up(model, tokenizer, Chat(tokenizer, thinking), None, None)
        return backend

    @classmethod
    def from_config(cls, config: ModelConfig, memory_share: float = 1.0) -> "TransformersBackend":
        """Load the model of a config; memory is taken as it is needed, whatever `memory_share` says."""
        return cls(
            model_source(config.model),
            thinking=config.thinking,
            batch_size=config.batch_size,
            device=config.device,
            dtype=config.dtype,
        )

    def _set_up(
        self, model: PreTrainedModel, tokenizer: Any, chat: Chat, batch_size: int | None, revision: str | None
    ) -> None:
        self.model, self.tokenizer, self.chat, self.batch_size = model, tokenizer, chat, batch_size
        known_ends = end_ids(model.generation_config, tokenizer)
        self.notes, self.revision = (*chat.notes, *chat.end_note(known_ends)), revision
        self.max_positions = max_positions(model.config)
        self._decoder = Decoder(model, known_ends | chat.end_ids)
        self._token_bytes: int | None = None

    def close(self) -> None:
        """Unload the weights and release the device's memory."""
        del self.model, self._decoder
        free_memory()

    def _generate(self, requests: Sequence[EncodedRequest], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield the rollouts in batches that fit into memory, each of prefills of equal length, longest first."""
        for num_forced in sorted({len(item.request.prefill) for item in requests}):
            queue = _in_order([item for item in requests if len(item.request.prefill) == num_forced])
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

    def _score(self, requests: Sequence[EncodedRequest]) -> list[PrefixScore | None]:
        return score_prefixes(
            self._decoder,
            [item.prompt.prompt_ids for item in requests],
            [item.request.prefill for item in requests],
            [item.request.context and item.request.context.context_id for item in requests],
        )

    def _complete(self, batch: Sequence[EncodedRequest], sampling: Sampling) -> list[Rollout]:
        """Return the rollouts of a batch with prefills of equal length, in order."""
        num_forced = len(batch[0].request.prefill)
        choose = chooser([item.request for item in batch], sampling, self._decoder.device, num_forced)
        shared = [item.num_shared for item in batch]
        num_left, prompts = (
            sampling.longest - num_forced,
            [item.prompt.prompt_ids + item.request.prefill for item in batch],
        )
        budgets = [self._budget(item, sampling) for item in batch] if sampling.think_tokens else []
        written = self._decoder.complete(prompts, shared, num_left, choose, budgets)
        return [
            failed(item.request, self.model_id, sampling, NOT_FINITE)
            if ids is None
            else self._completed(item, sampling, ids, self._decoder.ends((*item.request.prefill, *ids)))
            for item, ids in zip(batch, written, strict=True)
        ]

    def _batch_size(self, queue: Sequence[EncodedRequest], sampling: Sampling) -> int:
        """Return how many rows to decode at once: on a CPU as many as their keys and values may take."""
        on_cpu = self._decoder.device.type == "cpu"
        most = MAX_ROWS[on_cpu] if self._decoder.path is DecodingPath.BATCHED else ROWS_ALONE
        if on_cpu:
            if self._token_bytes is None:
                self._token_bytes = self._decoder.token_bytes()
            num_tokens = max(len(item.prompt.prompt_ids) for item in queue) + sampling.longest
            most = max(1, min(most, int(CACHE_SHARE * memory_bytes() / max(1, num_tokens * self._token_bytes))))
        # Even batches: 150 requests are two of 75, not one of 128 and a slow small one.
        return math.ceil(len(queue) / math.ceil(len(queue) / most))


def _in_order(requests: Sequence[EncodedRequest]) -> list[EncodedRequest]:
    """Return longest first (out of memory then shows at once), requests with the same shared prefix together."""
    groups = [item.request.context and item.request.context.context_id for item in requests]
    prefixes = shared_prefixes([item.prompt.prompt_ids for item in requests], groups)
    for item, num_shared in zip(requests, prefixes, strict=True):
        item.num_shared = num_shared
    return sorted(requests, key=lambda item: (item.num_shared, len(item.prompt.prompt_ids)), reverse=True)
