"""The time of `flipsearch --help` against importing only typer and rich, in one run.

    python benchmarks/help_time.py [--rounds 15]

Both are whole Python processes, alternating; the median counts. Prints the ratio.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import time

BASELINE = [sys.executable, "-c", "import typer, rich"]
OURS = [sys.executable, "-m", "flipsearch", "--help"]


def seconds(command: list[str]) -> float:
    """Return the wall time of one process."""
    start = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - start


def main() -> None:
    """Alternate the two and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    pairs = [(seconds(OURS), seconds(BASELINE)) for _ in range(rounds + 1)][1:]
    ours, baseline = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, median of {rounds} rounds")
    print(f"flipsearch --help {ours:.3f} s, import typer, rich {baseline:.3f} s, ratio {ours / baseline:.2f}")


if __name__ == "__main__":
    main()
