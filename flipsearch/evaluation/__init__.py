"""Evaluation: one model held against another on the same prompts and problems.

plan.py       what will be asked of which model; everything that can be wrong is found here, before a model is loaded
safety.py     harmful rate and over-refusal, answer by answer
reasoning.py  answers to problems, right or wrong
final.py      where the final answer stands in a text
numbers.py    numbers in all their dresses
algebra.py    expressions, compared by math-verify in a process of its own (worker.py)
scorecard.py  marks of both models to rates, changes, composite and tax
run.py        the evaluation from first to last
"""
