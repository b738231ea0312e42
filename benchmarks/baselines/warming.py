"""The whole library on the search split, generated once in full batches: a cache that all runs then draw on.

Over ten seeds the methods ask for most of it anyway, in batches far too small to be fast. Who rests on a rollout is
charged for it whether it was generated here or not.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from baselines.ground import Account, Ground, SearchSplit, random_contexts

CONTEXTS_A_CALL = 32
TABLES = ("rollouts", "verdicts")


def warm(ground: Ground, part: int, num_parts: int) -> None:
    """Generate one part of the library on the search split."""
    asked = SearchSplit(ground, Account()).asked
    mine = islice(random_contexts(ground, 0, "text"), part, None, num_parts)
    while some := list(islice(mine, CONTEXTS_A_CALL)):
        ground.look_ahead((context, asked) for context in some)


def share(places: Sequence[Path]) -> None:
    """Copy what each ledger holds to all others; none may be open."""
    for place in places:
        with closing(sqlite3.connect(place)) as connection:
            for other in places:
                if other != place:
                    connection.execute("ATTACH ? AS other", (str(other),))
                    for table in TABLES:
                        connection.execute(f"INSERT OR IGNORE INTO main.{table} SELECT * FROM other.{table}")
                    connection.commit()
                    connection.execute("DETACH other")
