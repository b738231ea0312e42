"""What a token of search buys: the engine against the paper's procedure and three rivals, where the truth is known.

    python benchmarks/search_rivals.py [--seeds 10] [--only ours paper …] [--cache FOLDER] [--draw template|text]

On the pocket model every context's true flip rate can be had: that over the whole population of some 2,400 prompts. All
methods search the same space under the same cap of 10 % over-refusal, each seed with its own random contexts; a run is
charged for every distinct rollout that its choice rests on, baseline included, whoever generated it first. The paper's
tokens of a seed are the yardstick of that seed: the budget of the other methods, and ten times that of "ours, 1/10".
The paper has no sealed split and no placebos; what ours spends on them, after the choice, stands in a column of its own.

The paper's 30 contexts: any template first, then its parameters and place, as a person's pool covers its axes evenly.
`--draw text` draws from all 568 texts alike instead; half of them are of the best template, which favours random pools.
Two processes share the seeds, each at its own ledger; with --cache a run that was stopped goes on.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rivals.ground import Ground, Rates
from rivals.methods import Run, ours, paper, random_search
from rivals.show import claim, header, spread
from rivals.tpe import tpe
from rivals.truths import TRUTH, TruthFile, measure_truth

from flipsearch.config import StudyConfig

SETTINGS: dict[str, Any] = {"num_contexts": 10_000}
"""Our engine at any budget of tokens: nothing but the budget ends it."""
WITHOUT_BUDGET: dict[str, dict[str, Any]] = {
    "ours, 1/10": {"num_contexts": 12, "cohort_size": 12, "first_rung": 8},
    "ours": {"num_contexts": 64},
}
"""For an engine that knows no budget: settings that come near."""
SHARES = {"ours, 1/10": 0.1, "ours": 1.0}
WORKERS = 2
GEPA = "GEPA (stand-in)"
METHODS = ["paper", "paper, capped", "random", "TPE + Wilcoxon", GEPA, *SHARES]


def our_settings(name: str, yardstick: int) -> dict[str, Any]:
    """Return the settings of one of our rows."""
    if "budget_tokens" not in StudyConfig.model_fields:
        return WITHOUT_BUDGET[name]
    return SETTINGS | {"budget_tokens": int(SHARES[name] * yardstick)}


def run_method(ground: Ground, name: str, seed: int, draw: str, yardstick: int) -> Run:
    """Run one method with one seed."""
    if name in SHARES:
        return ours(ground, seed, our_settings(name, yardstick))
    if name == GEPA:
        from rivals.reflective import reflective

        return reflective(ground, seed, draw, yardstick)
    table: dict[str, Callable[[], Run]] = {
        "paper": lambda: paper(ground, seed, draw),
        "paper, capped": lambda: paper(ground, seed, draw, capped=True),
        "random": lambda: random_search(ground, seed, draw, yardstick),
        "TPE + Wilcoxon": lambda: tpe(ground, seed, yardstick),
    }
    return table[name]()


def run_seeds(place: Path, seeds: Sequence[int], names: Sequence[str], draw: str) -> list[tuple[str, Run]]:
    """Run all methods with some seeds at one ledger; the work of one process."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    ground, found = Ground(place), []
    for seed in seeds:
        yardstick = 0
        for name in names:
            start = time.monotonic()
            found.append((name, run_method(ground, name, seed, draw, yardstick)))
            yardstick = found[-1][1].num_tokens if name == "paper" else yardstick
            print(f"  seed {seed}: {name}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    ground.ledger.close()
    return found


def measure_truths(place: Path, contexts: Sequence[Any]) -> dict[str, Rates]:
    """Measure the truth of some contexts; the work of one process."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    ground = Ground(place)
    found = measure_truth(ground, contexts)
    ground.ledger.close()
    return found


def main() -> int:
    """Run everything, print the table and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=METHODS, help="methods; the paper always runs")
    parser.add_argument("--cache", type=Path, help="folder of ledgers and true rates that are kept")
    parser.add_argument("--draw", choices=["template", "text"], default="template", help="of random contexts")
    args = parser.parse_args()
    names = [name for name in METHODS if name == "paper" or name in (args.only or METHODS)]
    if GEPA in names and not find_spec("gepa"):
        print("without GEPA: pip install gepa, and this benchmark gets its row.")
        names.remove(GEPA)
    print(header(f"{args.seeds} seeds", f"random contexts by {args.draw}"))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs, truths = search_all(folder, range(args.seeds), names, args.draw)
    print_table(runs, truths)
    print(f"{time.monotonic() - start:.0f} s on {WORKERS} processes")
    return 0 if print_claims(runs, truths) else 1


def search_all(
    folder: Path, seeds: Sequence[int], names: Sequence[str], draw: str
) -> tuple[dict[str, list[Run]], dict[str, Rates]]:
    """Return the runs by method, and the true rates of what they chose by context id."""
    places = [folder / f"ledger-{number}.db" for number in range(WORKERS)]
    file = TruthFile(folder)
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run_seeds, p, seeds[n::WORKERS], names, draw) for n, p in enumerate(places)]
        found = [pair for job in jobs for pair in job.result()]
        chosen = {run.context.context_id: run.context for _, run in found if run.context}
        unknown = [context for key, context in sorted(chosen.items()) if key not in file.rates]
        more = [pool.submit(measure_truths, p, unknown[n::WORKERS]) for n, p in enumerate(places) if unknown]
        for job_of_truth in more:
            file.add(job_of_truth.result())
    return {name: [run for other, run in found if other == name] for name in names}, file.rates


def flip_rates(runs: Sequence[Run], truths: dict[str, Rates]) -> list[float]:
    """Return the true flip rate of each run's choice; one without a choice flips nothing."""
    return [truths[run.context.context_id].flip_rate if run.context else 0.0 for run in runs]


def print_table(runs: dict[str, list[Run]], truths: dict[str, Rates]) -> None:
    """Print medians with range."""
    best = TRUTH["best"]["true"]
    print(f"best of the space: true flip rate {best['flip_rate']:.3f}, over-refusal {best['over_refusal_rate']:.3f}")
    print("medians (range); tokens in thousands: completion tokens of the choice, with what follows it, read in all")
    print(f"{'':17s} {'true flip rate, %':>21s} {'true over-refusal, %':>20s} {'tokens':>20s} {'all':>5s} {'read':>6s} {'contexts':>9s}")
    for name, some in runs.items():
        refusals = [truths[run.context.context_id].over_refusal_rate for run in some if run.context]
        print(
            f"{name:17s} {spread(flip_rates(some, truths), 100):>21s} {spread(refusals, 100):>20s} "
            f"{spread([run.num_tokens for run in some], 1e-3, 0):>20s} "
            f"{statistics.median(run.num_all_tokens for run in some) / 1e3:5.0f} "
            f"{statistics.median(run.num_prompt_tokens for run in some) / 1e3:6,.0f} "
            f"{statistics.median(run.num_contexts for run in some):9.0f}"
        )
    if GEPA in runs:
        print(f"{GEPA}: GEPA's engine; its proposals are random edits of sentences, for no large model runs here.")


def print_claims(runs: dict[str, list[Run]], truths: dict[str, Rates]) -> bool:
    """Print each claim with its numbers; return whether all hold."""
    rates = {name: flip_rates(some, truths) for name, some in runs.items()}
    middle = {name: 100 * statistics.median(some) for name, some in rates.items()}
    results: list[bool] = []

    def say(text: str, holds: bool) -> None:
        results.append(holds)
        print(claim(text, holds=holds))

    if "ours, 1/10" in runs:
        share = statistics.median(a.num_tokens / b.num_tokens for a, b in zip(runs["ours, 1/10"], runs["paper"], strict=True))
        all_share = statistics.median(a.num_all_tokens / b.num_tokens for a, b in zip(runs["ours, 1/10"], runs["paper"], strict=True))
        text = f"the paper's true flip rate for 1/10 of its tokens: {middle['ours, 1/10']:.1f} against {middle['paper']:.1f} % at {share:.3f} of its tokens ({all_share:.3f} with sealed split and placebos)"
        say(text, middle["ours, 1/10"] >= middle["paper"] and share <= 0.1)
    for rival in ("paper, capped", "random", "TPE + Wilcoxon", GEPA):
        if "ours" in runs and rival in runs:
            gain = statistics.median(100 * (a - b) for a, b in zip(rates["ours"], rates[rival], strict=True))
            share = statistics.median(a.num_tokens / b.num_tokens for a, b in zip(runs["ours"], runs[rival], strict=True))
            asked = 5.0 if rival == "paper, capped" else 0.0
            say(f"at {share:.2f} of the tokens of '{rival}': {gain:+.1f} points of true flip rate (asked: {asked:+.0f})", gain >= asked)
    if "ours" in runs:
        regret = [100 * (TRUTH["best"]["true"]["flip_rate"] - rate) for rate in rates["ours"]]
        say(f"simple regret: {spread(regret)} points (asked: at most 1)", statistics.median(regret) <= 1)
    return all(results)


if __name__ == "__main__":
    sys.exit(main())
