"""Near-duplicate clusters of large prompt sets, searched once and kept in the user's cache by content.

Everything in the cache can be deleted at any time: what is missing, damaged or cannot be written is searched again.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

from flipsearch.core.errors import PromptError
from flipsearch.core.files import cache_folder, write_text
from flipsearch.core.records import Prompt
from flipsearch.prompts.splitting import NEAR_DUPLICATE, find_clusters

CACHED_FROM = 5_000
"""Prompts from which on a search takes longer than reading its result."""
FORMAT = 1
"""Raised whenever the search gives other clusters."""


def cached_clusters(prompts: Sequence[Prompt]) -> list[str]:
    """Return what `find_clusters` returns."""
    if len(prompts) < CACHED_FROM:
        return find_clusters(prompts)
    key = hashlib.sha256(f"{FORMAT} {NEAR_DUPLICATE}".encode())
    for prompt in prompts:
        key.update(f"\x1f{prompt.prompt_id} {prompt.group}".encode())
    file = cache_folder("clusters") / f"{key.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(known, list) and len(known) == len(prompts) and all(isinstance(id, str) for id in known):
            return known
    clusters = find_clusters(prompts)
    with suppress(PromptError):  # a full or read-only disk: the next command searches again
        write_text(file, json.dumps(clusters), PromptError)
    return clusters
