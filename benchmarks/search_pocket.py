"""A default search on the pocket model: wall time, peak memory, and how near the winner comes to the known best.

    python benchmarks/search_pocket.py [--seeds 5]

Each seed is one `flipsearch search` with default settings in an empty folder. It is compared with the truth: of 40
contexts that the grammar expects to be best among the whole search space, the one with the highest true flip rate under
the same over-refusal cap (truth.json). A true rate is that over the whole population of some 2,400 prompts; the confirm
split is a sample of it, whose rates for both contexts are printed too. Peak memory is the highest of any seed so far.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flipsearch.core.records import Context
from pocket_model.truth import Decider, true_rates

WEIGHTS = Path(__file__).resolve().parents[1] / "flipsearch" / "pocket"


def search(seed: int) -> dict[str, Any]:
    """Run one search; return what it printed, with wall seconds and peak megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [sys.executable, "-m", "flipsearch", "search", "--seed", str(seed), "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        wall_s = time.monotonic() - start
    if done.returncode not in (0, 1):  # 1: it ran, and nothing beats the placebo
        raise SystemExit(done.stderr)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"wall_s": wall_s, "peak_mb": peak_mb, **json.loads(done.stdout)}


def main() -> None:
    """Run the seeds and print a line for each, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    num_seeds = parser.parse_args().seeds
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {num_seeds} seeds, 64 contexts each")
    runs = [search(seed) for seed in range(num_seeds)]
    report(runs, true_flip_rates([run["best"] for run in runs]))
    times, peaks = [run["wall_s"] for run in runs], [run["peak_mb"] for run in runs]
    print(f"wall time: median {statistics.median(times):.0f} s, worst {max(times):.0f} s; peak {max(peaks):.0f} MB")


def true_flip_rates(winners: Sequence[dict[str, Any]]) -> list[float]:
    """Return the true flip rate of each winner's card."""
    contexts = [Context(card["text"], card["placement"]) for card in winners]
    distinct = {context.context_id: context for context in contexts}
    rows = true_rates(Decider(WEIGHTS), list(distinct.values()))
    rates = dict(zip(distinct, (row["flip_rate"] for row in rows), strict=True))
    return [rates[context.context_id] for context in contexts]


def report(runs: Sequence[dict[str, Any]], true: Sequence[float]) -> None:
    """Print how near each winner comes to the best reachable, in truth and on the confirm split."""
    best = json.loads((WEIGHTS / "truth.json").read_text())["best"]
    reachable, sealed = best["true"]["flip_rate"], best["confirm"]["flip_rate"]
    print(f"best reachable: true flip rate {reachable:.3f}; confirm {sealed:.3f}")
    gaps = {"true flip rate": [], "confirm flip rate": []}  # type: dict[str, list[float]]
    for seed, (run, rate) in enumerate(zip(runs, true, strict=True)):
        metrics = run["best"]["metrics"]
        searched, confirm = (metrics[split]["flip_rate"]["value"] for split in ("search", "confirm"))
        gaps["true flip rate"].append(reachable - rate)
        gaps["confirm flip rate"].append(sealed - confirm)
        print(
            f"seed {seed}: true {rate:.3f}  search {searched:.3f}  confirm {confirm:.3f}  "
            f"over-refusal {metrics['confirm']['over_refusal_rate']['value']:.3f}  "
            f"{run['num_rollouts']} rollouts  {run['wall_s']:.0f} s  {run['peak_mb']:.0f} MB"
        )
    for name, points in gaps.items():
        mean, worst = 100 * statistics.mean(points), 100 * max(points)
        print(f"{name} below the best reachable: mean {mean:+.1f}, worst {worst:+.1f} points")


if __name__ == "__main__":
    main()
