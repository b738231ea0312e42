"""How a ledger's database is opened and locked, and what is said when that fails."""

import sqlite3
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError

from flipsearch.errors import LedgerError
from flipsearch.locks import is_held, take_lock


def make_engine(place: str | Path, read_only: bool) -> sql.Engine:
    """Return the engine of a SQLite file (a path) or of a database URL (a string)."""
    if isinstance(place, str):
        try:
            return sql.create_engine(place)
        except ValueError as error:  # how SQLAlchemy tells of a port that is no number
            raise ArgumentError(str(error)) from error
    # A URI path has its own escapes, so as_uri and not the path itself; read-only must not create the file.
    uri = f"{place.as_uri()}?mode={'ro' if read_only else 'rwc'}"
    engine = sql.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sql.StaticPool)
    if not read_only:
        sql.event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = NORMAL").close()


def lock_of(path: Path) -> Path:
    """Return the file whose lock the process that writes to a ledger holds."""
    return path.with_name(path.name + ".lock")


def lock_file(path: Path) -> sqlite3.Connection:
    """Take the lock beside a ledger; LedgerError if another process holds it."""
    try:
        return take_lock(lock_of(path))
    except sqlite3.Error as error:
        if is_held(error):
            raise LedgerError(
                f"{path} is in use by another flipsearch; wait until it ends, or choose another reports folder."
            ) from error
        why = one_line(error)
        raise LedgerError(f"{path}: the ledger cannot be locked: {why}. {what_to_do(why)}") from error


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def what_to_do(why: str) -> str:
    """Return what the user can do about a database error."""
    if "full" in why or "No space" in why:
        return "Free some space and run the same command again: what was saved before is intact."
    if "not a database" in why or "malformed" in why:
        return "It is not a flipsearch ledger, or it is damaged: name another file."
    return "Choose a folder that exists on this machine and can be written."
