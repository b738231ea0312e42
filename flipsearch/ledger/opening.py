"""Opens the ledger of a folder, and removes what was made for it if the command fails before anything is in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flipsearch.ledger.store import Ledger


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open a ledger for a block; if that fails with no rollout and no verdict in a new one, remove it and its folders.

    Nothing is removed if the ledger cannot be opened, but for empty folders: then another process works there.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    try:
        ledger = Ledger(path)
    except BaseException:
        _remove_empty(missing)
        raise
    with ledger:
        try:
            yield ledger
        except BaseException:
            is_unused = path in missing and not any(ledger.counts().values())
            ledger.close()
            if is_unused:
                for file in path.parent.glob(f"{path.name}*"):
                    file.unlink()
                if path.parent in missing:
                    shutil.rmtree(path.parent, ignore_errors=True)
                _remove_empty(missing[2:])
            raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
