"""Writes the pocket model's shipped prompts, split by intent, and its reasoning problems.

prompts/prompt_sets/pocket.csv and prompts/problem_sets/arithmetic.csv are written from here.
"""

import csv
import random
from pathlib import Path

from flipsearch.core.files import PACKAGE
from flipsearch.core.records import SPLITS, Split
from pocket_model import vocabulary as words
from pocket_model.arithmetic import Problem, random_problem
from pocket_model.grammar import Intent, Query, benign_intents, harmful_intents

SHARES: dict[str, tuple[int, ...]] = {
    # prompts for search, confirm, training, evaluation
    "harmful": (100, 100, 100, 60),
    "borderline": (15, 15, 10, 10),
    "benign": (35, 35, 70, 52),
}
WRAPPED_SHARE = 0.2
POPULATION_PHRASINGS, POPULATION_SEED = 4, 3
"""Phrasings per intent in `population`, and the seed that samples them."""
PATH = PACKAGE / "prompts" / "prompt_sets" / "pocket.csv"
NUM_PROBLEMS, PROBLEMS_SEED = 400, 11
"""The problems by which truth.py measures the arithmetic of the weights: the two accuracies are one number."""


def queries(seed: int = 7) -> list[tuple[Query, Split]]:
    """Return every prompt of the set with its split; borderline intents come in two phrasings."""
    rng = random.Random(seed)
    benign = benign_intents()
    kinds: dict[str, list[Intent]] = {
        "harmful": list(harmful_intents()),
        "borderline": [i for i in benign if i.borderline],
        "benign": [i for i in benign if not i.borderline],
    }
    prompts: list[tuple[Query, Split]] = []
    for kind, intents in kinds.items():
        rng.shuffle(intents)
        splits = [s for s, n in zip(SPLITS, SHARES[kind], strict=True) for _ in range(n)]
        for intent, split in zip(intents, splits, strict=True):
            num_phrasings = 2 if kind == "borderline" else 1
            for phrasing in rng.sample(_phrasings(split), num_phrasings):
                prompts.append((Query(intent, phrasing, _wrapper(kind, split, rng)), split))
    return prompts


def population() -> list[Query]:
    """Return every intent in several phrasings, sampled as the search and confirm prompts are.

    A rate over so many prompts is a context's true rate; over one split it varies by a few points.
    """
    rng = random.Random(POPULATION_SEED)
    return [
        Query(intent, phrasing, _wrapper(intent.kind, "search", rng))
        for intent in (*harmful_intents(), *benign_intents())
        for phrasing in rng.sample(_phrasings("search"), POPULATION_PHRASINGS)
    ]


def _phrasings(split: Split) -> list[str]:
    # Held-out phrasings are in the evaluation split only: generalisation to them is measured, not searched on.
    return list(words.PHRASINGS | words.HELD_OUT_PHRASINGS if split == "evaluation" else words.PHRASINGS)


def _wrapper(kind: str, split: Split, rng: random.Random) -> str:
    if kind != "harmful" or rng.random() >= WRAPPED_SHARE:
        return "{}"
    return rng.choice(list(words.WRAPPERS | words.HELD_OUT_WRAPPERS if split == "evaluation" else words.WRAPPERS))


def problems() -> list[Problem]:
    """Return the arithmetic problems of the problem set, without repeats."""
    rng = random.Random(PROBLEMS_SEED)
    sampled = (random_problem(rng) for _ in range(NUM_PROBLEMS))
    return list({problem.question: problem for problem in sampled}.values())


def problems_path(path: Path = PATH) -> Path:
    """Return the path of the problems that belong to a prompt set."""
    return path.parent.with_name("problem_sets") / "arithmetic.csv"


def write(path: Path = PATH) -> None:
    """Write the set as CSV in the columns of every built-in prompt set, and the problems in the folder beside it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("text", "kind", "category", "borderline", "split", "group"))
        for query, split in queries():
            p = query.prompt(split)
            rows.writerow((p.text, p.kind, p.category, str(p.borderline).lower(), split, p.group))
    write_problems(problems_path(path))


def write_problems(path: Path) -> None:
    """Write the arithmetic problems as CSV: question, answer."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("question", "answer"))
        rows.writerows((problem.question, problem.answer) for problem in problems())
