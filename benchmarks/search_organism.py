"""A default search on the pocket model: wall time, peak memory, and how near the winner comes to the known best.

    python benchmarks/search_organism.py [--seeds 5]

Each seed is one `flipsearch search` with default settings in an empty folder. The rival is the truth: of 40 contexts
that the grammar expects to be best among the whole search space, the one with the highest flip rate under the same
over-refusal cap, as measured when the weights were built (truth.json). Peak memory is the highest of any seed so far.
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
from pathlib import Path
from typing import Any

TRUTH = Path(__file__).resolve().parents[1] / "flipsearch" / "organism" / "weights" / "truth.json"


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
    best = json.loads(TRUTH.read_text())["best"]
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {num_seeds} seeds, 64 contexts each")
    print(f"best reachable: search {best['search']['flip_rate']:.3f}, confirm {best['confirm']['flip_rate']:.3f}")
    gaps, times, peaks = [], [], []
    for seed in range(num_seeds):
        found = search(seed)
        metrics = found["best"]["metrics"]
        confirm = metrics["confirm"]["flip_rate"]["value"]
        gaps.append(best["confirm"]["flip_rate"] - confirm)
        times.append(found["wall_s"])
        peaks.append(found["peak_mb"])
        print(
            f"seed {seed}: search {metrics['search']['flip_rate']['value']:.3f}  confirm {confirm:.3f}  "
            f"over-refusal {metrics['confirm']['over_refusal_rate']['value']:.3f}  gap {100 * gaps[-1]:+.1f} points  "
            f"{found['num_rollouts']} rollouts  {found['wall_s']:.0f} s  {found['peak_mb']:.0f} MB"
        )
    print(f"gap to the best reachable: mean {100 * statistics.mean(gaps):+.1f}, worst {100 * max(gaps):+.1f} points")
    print(f"wall time: median {statistics.median(times):.0f} s, worst {max(times):.0f} s; peak {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
