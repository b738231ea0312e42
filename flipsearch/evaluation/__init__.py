"""Evaluation: one model compared with another on the same prompts and problems.

plan.py       what is evaluated; everything that can be wrong is found here, before a model is loaded
run.py        generates the answers of both models and scores them; expressions are compared in worker.py
attacks.py    answers to attacked prompts
answers.py    the final answer in a text: a number, a letter, or a program and its tests, both confined by sandbox.py
scorecard.py  scores of both models to rates, changes, composite and tax; the answers that changed

A new set is one file: a csv in prompts/prompt_sets or prompts/problem_sets, named after its stem.
"""
