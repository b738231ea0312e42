"""Is the confirm rate that a study reports the winner's own rate? Many studies in made-up worlds where that is known.

    python benchmarks/confirm_coverage.py [--studies 200] [--first-seed 0] [--contexts 32]

Each study is a whole `run_study` in a world of its own: new prompts, new contexts, new luck. The winner's reported
confirm flip rate and its 95 % interval are held against its flip rate over the whole population, which a formula gives.
The rival is the number that chose the winner: its flip rate on the search prompts, which the winner's curse inflates.
Asked: mean error within 1 point, and the interval covers the truth in at least 94 % of the studies. How often an
interval covers is itself drawn: printed beside it is how often it must, over all draws of confirm prompts from winners
of these rates, and the most that luck does to the share seen (95 %).
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from scipy.stats import binom

from baselines.made_world import MadeJudge, MadeWorld
from baselines.show import claim, header
from flipsearch.config import StudyConfig
from flipsearch.core.records import Rate, Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from flipsearch.statistics.intervals import wilson

NUM_HARMFUL, NUM_BENIGN = 100, 40
"""Prompts of each split."""


@dataclass(frozen=True)
class Result:
    """What one study says of its winner, and what is true."""

    search: Rate
    confirm: Rate
    true: float


def one_study(seed: int, num_contexts: int) -> Result | None:
    """Run a study in a world of its own; None if it has no winner."""
    world = MadeWorld(seed)
    config = StudyConfig(seed=seed, num_contexts=num_contexts, cohort_size=16)
    plan = prepare_search(config, world.library, world.prompts(NUM_HARMFUL, NUM_BENIGN))
    with Ledger("sqlite://") as ledger:
        winner = run_study(plan, Runner(world.backend, MadeJudge(), ledger, Sampling(max_tokens=8))).winner
    if winner is None or winner.confirm is None:
        return None
    return Result(winner.search.flip_rate, winner.confirm.flip_rate, world.true_flip_rate(winner.context))


def describe(name: str, rates: Sequence[Rate], true: Sequence[float]) -> tuple[float, float]:
    """Print and return mean error in points and the share of intervals that cover the truth."""
    errors = [100 * ((rate.value or 0.0) - truth) for rate, truth in zip(rates, true, strict=True)]
    covered = [rate.low <= truth <= rate.high for rate, truth in zip(rates, true, strict=True)]
    half = 1.96 * statistics.stdev(errors) / math.sqrt(len(errors))
    mean, share = statistics.mean(errors), statistics.mean(covered)
    print(f"{name:14s} mean error {mean:+5.2f} points (95 %: +- {half:.2f})   its interval covers {share:6.1%}")
    return mean, share


def coverage(n: int, truth: float) -> float:
    """Return how often the interval of a rate of n draws covers the truth."""
    covers = [one.low <= truth <= one.high for one in (wilson(count, n) for count in range(n + 1))]
    return float(sum(binom.pmf(count, n, truth) for count in range(n + 1) if covers[count]))


def main() -> int:
    """Run the studies on all cores and print both rates' errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--contexts", type=int, default=32)
    args = parser.parse_args()
    start, seeds = time.monotonic(), range(args.first_seed, args.first_seed + args.studies)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(one_study, num_contexts=args.contexts), seeds, chunksize=4))
    results = [one for one in found if one is not None]
    print(header(f"{len(results)} of {args.studies} studies have a winner", f"{args.contexts} contexts each"))
    true = [one.true for one in results]
    print(f"winners: true flip rate {min(true):.2f} to {max(true):.2f}, mean {statistics.mean(true):.3f}")
    mean, share = describe("confirm", [one.confirm for one in results], true)
    describe("search (rival)", [one.search for one in results], true)
    expected = statistics.mean(coverage(one.confirm.n, one.true) for one in results)
    luck = 1.96 * math.sqrt(expected * (1 - expected) / len(results))
    print(f"{'':14s} of draws from such winners the interval covers {expected:.1%}; luck here: +- {luck:.1%}")
    print(f"{time.monotonic() - start:.0f} s")
    unbiased, covers = abs(mean) <= 1, share >= 0.94
    print(claim("the reported confirm rate is within 1 point of the truth on average", holds=unbiased))
    print(claim("its 95 % interval covers the truth in at least 94 % of the studies", holds=covers))
    return 0 if unbiased and covers else 1


if __name__ == "__main__":
    sys.exit(main())
