"""Prompts: built-in sets and the user's files, labelled, free of repeats, split by near-duplicate cluster.

sets.py       load_prompts: what a command works on
files.py      csv, tsv, jsonl, parquet and hf:// tables, and the column that holds the prompts
labels.py     labels to kinds; an unknown label is an error
texts.py      text cells; spreadsheets.py  what they must not run; problems.py  problem sets for reasoning
splitting.py  near-duplicate clusters, splits, nested order
"""
