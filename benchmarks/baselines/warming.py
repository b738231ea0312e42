"""Generates the whole library on the search split once, in full batches: a cache for all runs.

Over ten seeds the methods need most of it anyway, in batches far too small to be fast. A run is charged for every
rollout that it rests on, whether it was generated here or not.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from baselines.ground import Account, Ground, SearchSplit, random_contexts

CONTEXTS_PER_CALL = 32
TABLES = ("rollouts", "verdicts")


def warm(ground: Ground, part: int, num_parts: int) -> None:
    """Generate one part of the library on the search split."""
    prompts = SearchSplit(ground, Account()).prompts
    mine = islice(random_contexts(ground, 0, "text"), part, None, num_parts)
    while chunk := list(islice(mine, CONTEXTS_PER_CALL)):
        ground.prefetch((context, prompts) for context in chunk)


def share_ledgers(places: Sequence[Path]) -> None:
    """Copy the rows of each ledger to all others, which must not be open."""
    for place in places:
        with closing(sqlite3.connect(place)) as connection:
            for other in places:
                if other != place:
                    connection.execute("ATTACH ? AS other", (str(other),))
                    for table in TABLES:
                        connection.execute(f"INSERT OR IGNORE INTO main.{table} SELECT * FROM other.{table}")
                    connection.commit()
                    connection.execute("DETACH other")
