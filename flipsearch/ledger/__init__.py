"""The ledger: every rollout and verdict by content hash, in SQL; what is in it is never generated again."""

from flipsearch.ledger.store import CHUNK, LOCK_SUFFIX, Ledger, open_ledger
from flipsearch.ledger.tables import FORMAT, TOKEN_BYTES, Note

__all__ = ["CHUNK", "FORMAT", "LOCK_SUFFIX", "TOKEN_BYTES", "Ledger", "Note", "open_ledger"]
