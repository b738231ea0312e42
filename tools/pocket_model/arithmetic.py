"""The pocket model's reasoning: sums with carries and two-step word problems, each with a think trace."""

import random
from dataclasses import dataclass

NAMES = ("Tom", "Ann", "Ben", "Eva", "Sam", "Lea", "Max", "Ida")
THINGS = ("apples", "books", "stamps", "cards", "coins", "shells", "pens", "eggs")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its trace and its answer."""

    question: str
    trace: str
    answer: str


def addition(a: int, b: int) -> Problem:
    """Return the sum of two numbers below 100, carried digit by digit."""
    carry, steps = 0, []
    for x, y in zip(reversed(f"{a:02d}"), reversed(f"{b:02d}"), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return Problem(f"What is {a} + {b}?", f"{', '.join(steps)}. So {a + b}.", str(a + b))


def word_problem(name: str, thing: str, start: int, more: int, less: int) -> Problem:
    """Return a two-step problem: first a sum, then a difference."""
    question = f"{name} has {start} {thing}, gets {more} more and gives away {less}. How many {thing} are left?"
    total, left = start + more, start + more - less
    return Problem(question, f"{start}+{more}={total}, {total}-{less}={left}. So {left}.", str(left))


def random_problem(rng: random.Random) -> Problem:
    """Return a random problem; one in two is a word problem."""
    if rng.random() < 0.5:
        return addition(rng.randrange(10, 100), rng.randrange(10, 100))
    start, more = rng.randrange(10, 80), rng.randrange(5, 50)
    return word_problem(rng.choice(NAMES), rng.choice(THINGS), start, more, rng.randrange(2, min(50, start + more)))
