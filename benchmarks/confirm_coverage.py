"""Is the confirm rate that a study reports the winner's own rate? Many studies in synthetic worlds where that is known.

    python benchmarks/confirm_coverage.py [--studies 200] [--first-seed 0] [--contexts 32] [--samples 1000]

Each study is a whole `run_study` in a world of its own: new prompts, new contexts, new noise. The winner's reported
confirm flip rate and its 95 % interval are compared with its flip rate over the whole population, which a formula
gives. The baseline is the number that chose the winner: its flip rate on the search prompts, which the winner's curse
inflates. Required: mean error within 1 point, and the interval covers the truth in at least 94 % of the studies. The
observed coverage is itself random: printed with it is the expected coverage over all samples of confirm prompts from
winners of these rates, and the 95 % range of the observed share around it.

Then prompts in groups (paraphrases, jailbreak wrappers): samples of flips whose probability is a group's own, beta with
an intraclass correlation of .5, four prompts to a group. Required of the intervals that count groups: they cover the
true rate, and the true difference of two contexts, in at least 94 % of all samples. `--studies 0` runs this part alone.
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

import numpy as np
from scipy.special import betaincinv, ndtr
from scipy.stats import binom

from baselines.made_world import MadeJudge, MadeWorld
from baselines.show import claim, header
from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Rate
from flipsearch.core.records import Sampling
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from flipsearch.statistics.intervals import clustered_difference, clustered_rate, paired_difference, wilson

NUM_HARMFUL, NUM_BENIGN = 100, 40
"""Prompts of each split."""
GROUP_SIZE = 4


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


def grouped_coverage(num_samples: int, num_groups: int, first: float, second: float) -> tuple[float, float, float]:
    """Print and return how often intervals cover a rate and a difference in groups, and how often plain ones do it."""
    rng, clusters = np.random.default_rng(0), [str(row // GROUP_SIZE) for row in range(num_groups * GROUP_SIZE)]
    covered = np.zeros(4)
    for _ in range(num_samples):
        # A group that is hard for one context tends to be hard for the other: half of the ranks are shared.
        ranks = rng.standard_normal((2, num_groups))
        ranks[1] = (ranks[0] + math.sqrt(3) * ranks[1]) / 2
        left, right = [
            (rng.random(len(clusters)) < np.repeat(betaincinv(rate, 1 - rate, ndtr(rank)), GROUP_SIZE)).tolist()
            for rate, rank in zip((first, second), ranks, strict=True)
        ]
        rates = (clustered_rate(left, clusters), wilson(sum(left), len(left)))
        differences = (clustered_difference(left, right, clusters), paired_difference(left, right))
        covered += [rate.low <= first <= rate.high for rate in rates] + [
            difference.low <= first - second <= difference.high for difference in differences
        ]
    rate, plain_rate, difference, plain_difference = covered / num_samples
    print(
        f"{num_groups:3d} groups of {GROUP_SIZE}, rates {first:.2f} and {second:.2f}:  rate covered {rate:6.1%} "
        f"(plain {plain_rate:.0%})   difference {difference:6.1%} (plain {plain_difference:.0%})"
    )
    return float(rate), float(difference), float(plain_rate)


def coverage(n: int, truth: float) -> float:
    """Return the probability that the interval of a rate of n prompts covers the truth."""
    covers = [rate.low <= truth <= rate.high for rate in (wilson(count, n) for count in range(n + 1))]
    return float(sum(binom.pmf(count, n, truth) for count in range(n + 1) if covers[count]))


def grouped(num_samples: int) -> bool:
    """Print the coverage in groups over many cells, and return whether it is what is required."""
    cells = [(num, *rates) for num in (10, 25, 50) for rates in ((0.3, 0.3), (0.6, 0.35), (0.9, 0.6), (0.6, 0.05))]
    shares = np.array([grouped_coverage(num_samples, *cell) for cell in cells]).mean(axis=0)
    print(f"{'mean':14s} rate {shares[0]:.1%} (plain {shares[2]:.1%}), difference {shares[1]:.1%}")
    holds = bool(min(shares[:2]) >= 0.94)
    print(claim("intervals of prompts in groups cover the truth in at least 94 % of the samples", holds=holds))
    return holds


def main() -> int:
    """Run the studies on all cores and print both rates' errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    is_covered = grouped(args.samples)
    if not args.studies:
        return 0 if is_covered else 1
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
    return 0 if unbiased and covers and is_covered else 1


if __name__ == "__main__":
    sys.exit(main())
