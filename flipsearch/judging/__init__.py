"""Judges: loading them, running them behind the ledger, and measuring them against human labels."""
