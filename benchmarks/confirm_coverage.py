"""Is the confirm rate that a study reports the winner's own rate? Many studies in synthetic worlds where that is known.

    python benchmarks/confirm_coverage.py [--studies 200] [--first-seed 0] [--contexts 32]

Each study is a whole `run_study` in a world of its own: new prompts, new contexts, new noise. The winner's reported
confirm flip rate and its 95 % interval are compared with its flip rate over the whole population, which a formula
gives. The baseline is the number that chose the winner: its flip rate on the search prompts, which the winner's curse
inflates. Required: mean error within 1 point, and the interval covers the truth in at least 94 % of the studies. The
observed coverage is itself random: printed with it is the expected coverage over all samples of confirm prompts from
winners of these rates, and the 95 % range of the observed share around it.
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
from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Rate
from flipsearch.core.records import Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from flipsearch.statistics.intervals import wilson

NUM_HARMFUL, NUM_BENIGN = 100, 40
"""Prompts of each split."""


@dataclass(frozen=True)
class WinnerRates:
    """What one study reports of its winner, and its true flip rate."""

    search: Rate
    confirm: Rate
    true: float


def one_study(seed: int, num_contexts: int) -> WinnerRates | None:
    """Run a study in a world of its own; None if it has no winner."""
    world = MadeWorld(seed)
    config = SearchConfig(seed=seed, num_contexts=num_contexts, cohort_size=16)
    plan = prepare_search(config, world.library, world.prompts(NUM_HARMFUL, NUM_BENIGN))
    with Ledger("sqlite://") as ledger:
        winner = run_study(plan, Runner(world.backend, MadeJudge(), ledger, Sampling(max_tokens=8))).winner
    if winner is None or winner.confirm is None:
        return None
    return WinnerRates(winner.search.flip_rate, winner.confirm.flip_rate, world.true_flip_rate(winner.context))


def describe(name: str, rates: Sequence[Rate], true: Sequence[float]) -> tuple[float, float]:
    """Print and return mean error in points and the share of intervals that cover the truth."""
    errors = [100 * ((rate.value or 0.0) - truth) for rate, truth in zip(rates, true, strict=True)]
    covered = [rate.low <= truth <= rate.high for rate, truth in zip(rates, true, strict=True)]
    half = 1.96 * statistics.stdev(errors) / math.sqrt(len(errors))
    mean, share = statistics.mean(errors), statistics.mean(covered)
    print(f"{name:14s} mean error {mean:+5.2f} points (95 %: +- {half:.2f})   its interval covers {share:6.1%}")
    return mean, share


def coverage(n: int, truth: float) -> float:
    """Return the probability that the interval of a rate of n prompts covers the truth."""
    covers = [rate.low <= truth <= rate.high for rate in (wilson(count, n) for count in range(n + 1))]
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
        studies = list(pool.map(partial(one_study, num_contexts=args.contexts), seeds, chunksize=4))
    results = [rates for rates in studies if rates is not None]
    print(header(f"{len(results)} of {args.studies} studies have a winner", f"{args.contexts} contexts each"))
    true = [winner.true for winner in results]
    print(f"winners: true flip rate {min(true):.2f} to {max(true):.2f}, mean {statistics.mean(true):.3f}")
    mean, share = describe("confirm", [winner.confirm for winner in results], true)
    describe("search split", [winner.search for winner in results], true)
    expected = statistics.mean(coverage(winner.confirm.n, winner.true) for winner in results)
    luck = 1.96 * math.sqrt(expected * (1 - expected) / len(results))
    print(f"{'':14s} expected for such winners: {expected:.1%}, +- {luck:.1%} by chance")
    print(f"{time.monotonic() - start:.0f} s")
    unbiased, covers = abs(mean) <= 1, share >= 0.94
    print(claim("the reported confirm rate is within 1 point of the truth on average", holds=unbiased))
    print(claim("its 95 % interval covers the truth in at least 94 % of the studies", holds=covers))
    return 0 if unbiased and covers else 1


if __name__ == "__main__":
    sys.exit(main())
