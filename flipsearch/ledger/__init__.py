"""The ledger: every rollout and verdict by content hash, in SQL; what is in it is never generated again."""

from flipsearch.ledger.store import CHUNK, LOCK_SUFFIX, Ledger, open_ledger

__all__ = ["CHUNK", "LOCK_SUFFIX", "Ledger", "open_ledger"]
