"""Prompts: built-in sets and the user's files, labelled, free of repeats, split by near-duplicate cluster.

sets.py           prompt sets: what a command works on
known_sets.py     public sets by their columns: what is the prompt, what labels it, where it is fetched
problems.py       problem sets for reasoning; choices.py letters their choices
files.py          tables: a file's columns and rows, and the column that holds the prompts
formats.py        csv, tsv, json, jsonl, txt, parquet and .gz, row by row
downloads.py      https addresses and the Hugging Face hub
conversations.py  prompts that are chat turns
labels.py         labels to kinds; an unknown label is an error, a label of an answer is not taken
splitting.py      near-duplicate clusters (those of large sets are kept), splits, nested order
"""
