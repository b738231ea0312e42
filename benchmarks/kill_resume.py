"""kill -9 at random moments of a search, continued by the same command.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0]

A small whole search on the pocket model runs once undisturbed: the baseline. Then searches of the same settings, each
in a new folder, are killed at random moments and continued by the same command until they end; new ones are started
until enough kills have hit. Claims:

1. The files of a continued search (study.json.gz, leaderboard.csv, leaderboard.html, best.txt and its card) equal
   those of the undisturbed one byte for byte.
2. No rollout that was saved is ever generated again. A trigger that this script puts into the ledger before the search
   starts records every save, in the transaction of the save itself, and every generated rollout is saved the moment
   the backend yields it: so each rollout must have been saved once. Rollouts of the batch in flight at a kill were
   never saved; generating those again is what "at most the batch in flight is lost" means, and is not counted.
"""

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from baselines.show import claim, header
from flipsearch.ledger import Ledger
from flipsearch.reporting.study_file import LEDGER_FILE

STUDY = "killed"
SETTINGS = ["--num-contexts", "12", "--cohort-size", "6", "--max-prompts", "30", "--num-finalists", "2"]
COMMAND = [sys.executable, "-m", "flipsearch", "search", "--study", STUDY, *SETTINGS, "--json"]
FOLDER = Path("reports") / STUDY
FILES = [FOLDER / name for name in ("study.json.gz", "leaderboard.csv", "leaderboard.html")]
FILES += [Path("best.txt"), Path("best.json")]
TRIGGER = """
CREATE TABLE saves (rollout_id TEXT NOT NULL);
CREATE TRIGGER each_save AFTER INSERT ON rollouts BEGIN INSERT INTO saves VALUES (new.rollout_id); END;
"""


@dataclass(frozen=True)
class Saved:
    """What the trigger recorded."""

    num_saves: int
    num_distinct: int


def prepare(place: Path) -> None:
    """Make the ledger of a search to come, with the trigger in it."""
    path = place / FOLDER / LEDGER_FILE
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TRIGGER)


def saved(place: Path) -> Saved:
    """Return what was saved so far."""
    with closing(sqlite3.connect(place / FOLDER / LEDGER_FILE)) as connection:
        counts = connection.execute("SELECT count(*), count(DISTINCT rollout_id) FROM saves").fetchone()
        kept = connection.execute("SELECT count(*) FROM rollouts").fetchone()[0]
    if kept != counts[1]:
        raise SystemExit(f"the trigger saw {counts[1]} rollouts, the ledger holds {kept}: it cannot be trusted.")
    return Saved(*counts)


def run(place: Path, kill_after_s: float | None) -> bool:
    """Start the search; kill it after so many seconds. Return whether it ended before."""
    with subprocess.Popen(COMMAND, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.communicate(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    if process.returncode not in (0, 1, -signal.SIGKILL):  # 1: it ran, and nothing beats the placebo
        raise SystemExit(f"the search ended with {process.returncode} in {place}.")
    return process.returncode != -signal.SIGKILL


def killed_search(place: Path, rng: random.Random, whole_s: float, num_kills: int, total: int) -> int:
    """Kill and continue one search until it ends or enough kills have hit; return how many hit."""
    prepare(place)
    hits = 0
    while hits < num_kills:
        if run(place, rng.uniform(0, whole_s)):
            return hits
        hits += 1
        print(f"  killed at {saved(place).num_distinct} of {total} rollouts", flush=True)
    run(place, None)
    return hits


def contents(place: Path) -> list[bytes]:
    """Return the contents of the files that a search writes."""
    return [(place / name).read_bytes() for name in FILES]


def main() -> int:
    """Kill until enough kills have hit; print the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    print(header(f"{args.kills} kills, flipsearch search {' '.join(SETTINGS)}"))
    rng, hits, same, counts = random.Random(args.seed), 0, list[list[bool]](), list[Saved]()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        whole, whole_s = undisturbed(root / "whole")
        total = counts_of(root / "whole", counts)
        while hits < args.kills:
            place = root / f"search-{len(same)}"
            hits += killed_search(place, rng, whole_s, args.kills - hits, total)
            same.append([content == expected for content, expected in zip(contents(place), whole, strict=True)])
            counts_of(place, counts)
    return report(hits, same, counts)


def undisturbed(place: Path) -> tuple[list[bytes], float]:
    """Run the undisturbed search; return its files and its seconds."""
    prepare(place)
    start = time.monotonic()
    run(place, None)
    whole_s = time.monotonic() - start
    print(f"undisturbed: {saved(place).num_distinct} rollouts in {whole_s:.0f} s", flush=True)
    return contents(place), whole_s


def counts_of(place: Path, counts: list[Saved]) -> int:
    """Add what a finished search saved to `counts`; return the number of its rollouts."""
    counts.append(saved(place))
    return counts[-1].num_distinct


def report(hits: int, same: Sequence[Sequence[bool]], counts: Sequence[Saved]) -> int:
    """Print the claims; return the exit code."""
    different = sorted({name.name for row in same for name, equal in zip(FILES, row, strict=True) if not equal})
    again = sum(run.num_saves - run.num_distinct for run in counts[1:])
    distinct = {run.num_distinct for run in counts}
    searches = f"{len(same)} searches killed {hits} times in all"
    equal = "all equal the undisturbed one's" if not different else f"unequal: {', '.join(different)}"
    print(claim(f"files of {searches}: {len(FILES)} each, {equal}", holds=not different))
    saves = sum(run.num_saves for run in counts[1:])
    text = f"{saves} rollouts saved over all processes, {again} of them again; {sorted(distinct)} distinct per search"
    print(claim(text, holds=again == 0 and len(distinct) == 1))
    return 0 if not different and again == 0 and len(distinct) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
