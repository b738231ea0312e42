"""Prompts: built-in sets and the user's files, labelled, free of repeats, split by near-duplicate cluster.

sets.py       prompt sets: what a command works on
problems.py   problem sets for reasoning
files.py      csv, tsv, jsonl, parquet and hf:// tables, and the column that holds the prompts
labels.py     labels to kinds; an unknown label is an error
splitting.py  near-duplicate clusters, splits, nested order
"""
