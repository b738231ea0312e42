"""Prompts: built-in sets and the user's files, labelled, free of repeats, split by near-duplicate cluster.

sets.py           prompt sets: what a command works on
known_sets.py     public sets by their columns: what is the prompt, what labels it, where it is fetched
problems.py       problem sets for reasoning, whose choices are lettered
files.py          tables: a file that is here or fetched, its columns and rows, the column that holds the prompts
formats.py        csv, tsv, json, jsonl, txt, parquet and .gz, row by row
rows.py           what a row says: its request or chat, and its kind; an unknown label is an error
attacks.py        what can be done to a harmful request so that a model answers it
splitting.py      near-duplicate clusters (those of large sets are kept), splits, nested order
"""
