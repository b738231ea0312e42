"""Which key goes to which endpoint: none reaches a host that it may not be meant for.

OPENAI_API_KEY is the key of the only host that a command asks. Where it asks several (a model here, a judge there),
each has a variable of its own, OPENAI_API_KEY_HOST or OPENAI_API_KEY_HOST_PORT, and gets nothing without it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

KEY_VARIABLE = "OPENAI_API_KEY"
_HOSTS: ContextVar[set[str] | None] = ContextVar("hosts", default=None)
"""Hosts, with their ports, of the endpoints that the running command names; None outside of commands."""


@contextmanager
def one_command() -> Iterator[None]:
    """Open the block, or decorate the function, of a command: its endpoints are told apart by `name_host`."""
    token = _HOSTS.set(set())
    try:
        yield
    finally:
        _HOSTS.reset(token)


def name_host(host: str) -> None:
    """Note that the running command asks a host; called where models are checked, before anything is sent."""
    hosts = _HOSTS.get()
    if hosts is not None:
        hosts.add(host)


def variable_of(host: str) -> str:
    """Return the variable that holds the key of a host, e.g. OPENAI_API_KEY_LOCALHOST_8000."""
    own = f"{KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]+', '_', host.upper()).strip('_')}"
    is_alone = (_HOSTS.get() or set()) <= {host}
    return KEY_VARIABLE if is_alone and own not in os.environ else own
