"""A lock file that one process holds at a time: portable, and freed by the operating system when the process ends."""

import sqlite3
from pathlib import Path


def take_lock(file: Path) -> sqlite3.Connection:
    """Hold an exclusive transaction on an empty database until the returned connection is closed.

    Raises sqlite3.Error if the file cannot be created or another process holds the lock; `is_held` tells them apart.
    """
    lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def is_held(error: sqlite3.Error) -> bool:
    """Return whether an error of `take_lock` means that another process holds the lock."""
    return "locked" in str(error)


def is_taken(file: Path) -> bool:
    """Return whether a process holds the lock of `file` now; writes nothing and takes no lock."""
    if not file.is_file():
        return False
    reader = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=0)
    try:
        reader.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        return is_held(error)
    finally:
        reader.close()
    return False
