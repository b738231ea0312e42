"""Evaluation: one model compared with another on the same prompts and problems.

plan.py       what is evaluated; everything that can be wrong is found here, before a model is loaded
run.py        generates the answers of both models and scores them; expressions are compared in worker.py
answers.py    the final answer in a text: the number that it states, or the letter that it chooses
examples.py   answers that changed from the base to the new model
scorecard.py  scores of both models to rates, changes, composite and tax

A new set is one file: a csv in prompts/prompt_sets or prompts/problem_sets, named after its stem.
"""
