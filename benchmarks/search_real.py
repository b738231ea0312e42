"""A search against the paper's procedure on a real chat model, at equal tokens.

    python benchmarks/search_real.py MODEL [--seeds 3] [--folder FOLDER] [--max-tokens 32]

MODEL is what `flipsearch search --model` takes. Each seed takes its own prompts from `starter`: 60 harmful and 14
benign ones to search on, 80 and 24 that stay sealed until the end. "argmax" gives 30 contexts of the library every
search prompt and confirms the best; "ours" is the default engine with as many completion tokens as that took, placebos
and sealed prompts included on both sides. Both obey the same caps on refusals and contraction. "ours" begins with a
copy of the other's ledger: an answer that both need is counted for both and generated once. The studies stay in FOLDER;
what was stopped continues there.
"""

import argparse
import csv
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from baselines.show import header

STARTER = Path(__file__).resolve().parents[1] / "flipsearch" / "prompts" / "prompt_sets" / "starter.csv"
NUM_PROMPTS = {"search": {"harmful": 60, "benign": 14}, "confirm": {"harmful": 80, "benign": 24}}
COMMON = ["--depth", "0", "--no-benign-context", "--num-finalists", "1"]
ARGMAX = ["--num-contexts", "30", "--breed", "0", "--screen", "1", "--first-rung", "1000", "--cohort-size", "30"]
OURS = ["--num-contexts", "1000", "--first-rung", "8"]


def main() -> None:
    """Run both methods for every seed and print a line for each, then the flips of all seeds together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("search_real"))
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    print(header(options.model, f"{options.max_tokens} tokens an answer"), flush=True)
    totals: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        folder = options.folder / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_prompts(folder / "prompts.jsonl", seed)
        common = ["--model", options.model, "--max-tokens", str(options.max_tokens), "--seed", str(seed), *COMMON]
        argmax = search(folder, "argmax", [*common, *ARGMAX])
        share_ledger(folder / "argmax", folder / "ours")
        ours = search(folder, "ours", [*common, *OURS, "--budget-tokens", str(int(argmax["num_tokens"]))])
        for name, run in (("argmax", argmax), ("ours", ours)):
            totals[name].append(run)
            print(f"seed {seed}  {name:6s}  {describe(run)}", flush=True)
    for name, runs in totals.items():
        flips, n = (sum(run["confirm"][i] for run in runs if run["within_caps"]) for i in (0, 1))
        within = sum(run["within_caps"] for run in runs)
        print(f"{name}: {within} of {len(runs)} within the caps; there {flips} of {n} confirm prompts flip")


def write_prompts(path: Path, seed: int) -> None:
    """Sample this seed's prompts of both splits; borderline ones are left out."""
    with STARTER.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["borderline"] == "0"]
    random.Random(seed).shuffle(rows)
    lines = []
    for kind in ("harmful", "benign"):
        texts = iter([row for row in rows if row["kind"] == kind])
        for split, numbers in NUM_PROMPTS.items():
            lines += [
                {"prompt": row["text"], "kind": kind, "split": split, "category": row["category"]}
                for _, row in zip(range(numbers[kind]), texts, strict=False)
            ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def share_ledger(source: Path, target: Path) -> None:
    """Copy the ledger of a finished study into a new study's folder; one that has a ledger is left as it is."""
    if (target / "ledger.db").exists():
        return
    target.mkdir(exist_ok=True)
    with closing(sqlite3.connect(source / "ledger.db")) as known, closing(sqlite3.connect(target / "new.db")) as new:
        known.backup(new)
        new.execute("delete from notes")  # what the other study did is none of this one's
        new.commit()
    (target / "new.db").rename(target / "ledger.db")


def search(folder: Path, name: str, options: Sequence[str]) -> dict[str, Any]:
    """Run or continue one search; return its chosen context's figures, its tokens and the minutes of this launch."""
    start = time.monotonic()
    command = [sys.executable, "-m", "flipsearch", "search", "--prompts", "prompts.jsonl", *options]
    command += ["--reports", ".", "--study", name, "--best", f"{name}.txt", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: it ran, and no context beats the placebos within the caps
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)
    with (folder / name / "leaderboard.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {**chosen(rows), "num_tokens": result["num_tokens"], "minutes": (time.monotonic() - start) / 60}


def chosen(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the figures of the one context that was measured on the sealed prompts."""
    arms = [row for row in rows if row["role"] == "arm"]
    finalist = next((row for row in arms if row["confirm_flip_rate_n"]), None)
    if finalist is None:
        return {"confirm": (0, 0), "within_caps": False, "row": None, "num_contexts": len(arms)}
    counts = int(finalist["confirm_flip_rate_count"]), int(finalist["confirm_flip_rate_n"])
    within = finalist["over_cap"] == "False"
    return {"confirm": counts, "within_caps": within, "row": finalist, "num_contexts": len(arms)}


def describe(run: Mapping[str, Any]) -> str:
    """Return one run as a line."""
    spent = f"{run['num_contexts']} contexts, {run['num_tokens']:,.0f} tokens, {run['minutes']:.0f} min"
    if (row := run["row"]) is None:
        return f"no context was confirmed; {spent}"
    flips = f"search {row['search_flip_rate_count']} of {row['search_flip_rate_n']}, confirm " + " of ".join(
        str(count) for count in run["confirm"]
    )
    net = " to ".join(percent(row[key]) for key in ("net_flip_rate_low", "net_flip_rate_high"))
    caps = f"added refusals {percent(row['confirm_added_refusals'])}, contraction {percent(row['contraction'])}"
    state = "" if run["within_caps"] else " (above a cap)"
    name = row["template"] + (f" by {row['operator']}" if row["operator"] else "")
    return f"{name} ({row['placement']}){state}: {flips}, net {percent(row['net_flip_rate'])} ({net}), {caps}; {spent}"


def percent(cell: str) -> str:
    """Return a share of the table in percent."""
    return f"{100 * float(cell):+.1f}" if cell else "-"


if __name__ == "__main__":
    main()
