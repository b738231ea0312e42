"""The time of a default search outside of generating and judging, as a share of its wall time.

    python benchmarks/search_overhead.py [--rounds 3] [--judge JUDGE] [--profile]

The baseline is the work that cannot be saved: the time inside the backend (generation and all its other methods) and
inside the judge, measured by wrapping both. Imports, and loading and unloading the model, are left out. Required: under
5 %. With a guard model as the judge, e.g. `--judge pocket_guard`, the time that judging adds to the rest is a claim
too: under 15 %. `--profile` shows where the rest is spent.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import flipsearch
from baselines.show import claim, header
from flipsearch.backends.base import make_backend
from flipsearch.judging.library import load_judge
from flipsearch.judging.panel import PanelJudge

REQUIRED, REQUIRED_JUDGING = 0.05, 0.15


class Clock:
    """Seconds by activity."""

    def __init__(self) -> None:
        self.seconds = {"load": 0.0, "backend": 0.0, "judge": 0.0}
        self.profile: cProfile.Profile | None = None

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Count the time of a block, and hide it from the profile."""
        start = time.perf_counter()
        if self.profile:
            self.profile.disable()
        try:
            yield
        finally:
            if self.profile:
                self.profile.enable()
            self.seconds[what] += time.perf_counter() - start

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted; an iterator's steps are counted one by one."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.spent_on(what):
                result = function(*args, **kwargs)
            return self._steps(what, result) if isinstance(result, Iterator) else result

        return call

    def _steps(self, what: str, steps: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.spent_on(what):
                step = next(steps, self)
            if step is self:
                return
            yield step


class Timed:
    """A backend or judge whose methods are timed, except for counting tokens, which is part of searching."""

    def __init__(self, inner: Any, what: str, clock: Clock) -> None:
        self._inner, self._what, self._clock = inner, what, clock

    def __getattr__(self, name: str) -> Any:
        result = getattr(self._inner, name)
        if not callable(result) or name == "count_tokens":
            return result
        return self._clock.timed("load" if name == "close" else self._what, result)


def timed_judge(name: str, clock: Clock) -> Any:
    """Return the judge of a name with its calls timed; of a panel those of each member."""
    judge = load_judge(name)
    if isinstance(judge, PanelJudge):
        return PanelJudge([Timed(member, "judge", clock) for member in judge.members], judge.rule)
    return Timed(judge, "judge", clock)


def search(clock: Clock, **settings: Any) -> float:
    """Run a search in an empty folder; return its wall seconds."""
    load = clock.timed("load", make_backend)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("flipsearch.workspace.load_judge", lambda name: timed_judge(name, clock)),
        patch("flipsearch.workspace.make_backend", lambda *on, **more: Timed(load(*on, **more), "backend", clock)),
    ):
        place = Path(folder)
        start = time.perf_counter()
        flipsearch.search(reports=place / "reports", best=place / "best.txt", **settings)
        return time.perf_counter() - start


def main() -> int:
    """Run the rounds and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--judge", default="refusal")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    search(Clock(), num_contexts=2, cohort_size=1, max_prompts=4, num_finalists=1)  # everything is imported now
    print(header(f"{args.rounds} default searches of the pocket model"))
    shares, added = [], []
    for seed in range(args.rounds):
        clock = Clock()
        wall_s = search(clock, seed=seed, judge=args.judge) - clock.seconds["load"]
        rest_s = wall_s - clock.seconds["backend"] - clock.seconds["judge"]
        shares.append(rest_s / wall_s)
        added.append(clock.seconds["judge"] / (wall_s - clock.seconds["judge"]))
        parts = "  ".join(f"{what} {spent:.1f} s" for what, spent in clock.seconds.items() if what != "load")
        print(f"seed {seed}: {wall_s:.1f} s without loading: {parts}  rest {rest_s:.1f} s = {shares[-1]:.1%}")
    if args.profile:
        show_profile()
    share = statistics.median(shares)
    holds = share < REQUIRED
    print(claim(f"outside of generation and judging: median {share:.1%} (required: under {REQUIRED:.0%})", holds=holds))
    judging = statistics.median(added)
    quick = judging < REQUIRED_JUDGING
    required = f"required: under {REQUIRED_JUDGING:.0%}"
    print(claim(f"judging by {args.judge} adds: median {judging:.1%} ({required})", holds=quick))
    return 0 if holds and quick else 1


def show_profile() -> None:
    """Print where the time outside of backend and judge is spent; profiling itself makes it longer."""
    clock = Clock()
    clock.profile = cProfile.Profile()
    clock.profile.enable()
    search(clock)
    clock.profile.disable()
    for order in ("tottime", "cumulative"):
        pstats.Stats(clock.profile).sort_stats(order).print_stats(25)


if __name__ == "__main__":
    sys.exit(main())
