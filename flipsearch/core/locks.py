"""A file that one process holds at a time: portable, and freed by the operating system however the process ends."""

import sqlite3
from pathlib import Path


def take_lock(file: Path) -> sqlite3.Connection:
    """Hold an exclusive transaction on an empty database until the connection is closed.

    Raises sqlite3.Error if the file cannot be made, or is held, of which `is_held` tells.
    """
    lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def is_held(error: sqlite3.Error) -> bool:
    """Return whether another process holds the lock."""
    return "locked" in str(error)


def is_taken(file: Path) -> bool:
    """Return whether a process holds the lock of `file` now; nothing is written, and no lock is taken."""
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
