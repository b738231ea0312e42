"""A model and a judge behind the ledger, and the rates that their answers give."""
