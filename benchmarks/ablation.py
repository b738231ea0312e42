"""What the choice of operators by credit is worth: default searches of the pocket model against a random choice.

    python benchmarks/ablation.py [--seeds 10] [--contexts 64] [--cache FOLDER]

Both variants search the same prompts with the same seeds, at one ledger per process; the winner's true flip rate is
that over the whole population of prompts. The difference is paired by seed, with its 95 % interval (t). With --cache a
run that was stopped continues.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats

from baselines.ground import Ground
from baselines.methods import ours
from baselines.show import header
from baselines.truths import measure_truth
from flipsearch.searching.breeder import Credit

VARIANTS = ("by credit", "at random")
WORKERS = 2


def choose_at_random(self: Credit, names: Sequence[str], rng: random.Random) -> str:
    """Stand in for the choice by credit."""
    return rng.choice(list(names))


def run_seeds(folder: Path, worker: int, num_seeds: int, num_contexts: int) -> list[dict[str, float | int | str]]:
    """Run both variants with every WORKERS-th seed; rows that are in the folder already are not run again."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    ground, path = Ground(folder / f"ledger-{worker}.db"), folder / f"rows-{worker}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(row["seed"], row["variant"]) for row in rows}
    for seed in range(worker, num_seeds, WORKERS):
        for variant in VARIANTS:
            if (seed, variant) in known:
                continue
            with patch.object(Credit, "choose", choose_at_random if variant == "at random" else Credit.choose):
                run = ours(ground, seed, {"num_contexts": num_contexts}, sealed=True)
            rates = measure_truth(ground, [run.context]) if run.context else {}
            flip_rate = rates[run.context.context_id].flip_rate if run.context else 0.0
            rows.append({"seed": seed, "variant": variant, "flip_rate": flip_rate, "tokens": run.num_tokens})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    ground.ledger.close()
    return rows


def main() -> int:
    """Run all seeds and print the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--cache", type=Path, help="folder in which ledgers and rows are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(run_seeds, folder, n, args.seeds, args.contexts) for n in range(WORKERS)]
            rows = [row for job in jobs for row in job.result()]
    rates = {(row["seed"], row["variant"]): float(row["flip_rate"]) for row in rows}
    gains = 100 * np.array([rates[seed, "by credit"] - rates[seed, "at random"] for seed in range(args.seeds)])
    low, high = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
    print(header(f"{args.seeds} seeds", f"{args.contexts} contexts"))
    for variant in VARIANTS:
        mean = np.mean([100 * rates[seed, variant] for seed in range(args.seeds)])
        print(f"operators {variant:10s} true flip rate of the winner {mean:.1f} %")
    print(f"by credit minus at random: {gains.mean():+.2f} points ({low:+.2f} to {high:+.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
