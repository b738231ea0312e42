"""How a command tells what came of it: one JSON object, or text for people."""

from collections.abc import Callable
from typing import Any


def print_outcome(outcome: Any, json: bool, show: Callable[[Any], None]) -> None:
    """Print what `as_dict` gives, or let `show` print it."""
    from flipsearch import console

    if json:
        console.print_json(outcome.as_dict())
    else:
        show(outcome)


def show_outcome(outcome: Any, json: bool) -> None:
    """Print a finished study."""
    from flipsearch import console

    print_outcome(outcome, json, lambda done: console.show_study(done.study, done.folder, done.best_path))
