"""The true flip rate per token of search: the engine against the paper's procedure and three baseline methods.

    python benchmarks/search_baselines.py [--seeds 10] [--only ours paper …] [--cache FOLDER] [--sampling template|text]

On the pocket model every context's true flip rate can be measured: that over the whole population of some 2,400
prompts. All methods search the same contexts under the same cap of 10 % over-refusal (but for the paper's own
procedure, which has none). A run is charged for every distinct rollout that it rests on, baseline included, whichever
method generated it first. The paper's tokens of a seed are the budget of that seed: for the baseline methods and "ours"
the whole of it, for "ours, 1/10" a tenth. "ours" is a whole study, placebos and sealed split included; "ours, 1/10"
leaves them out, as the paper does.

The paper's 30 contexts: any template first, then its parameters and placement, as a person's pool covers its axes
evenly. `--sampling text` samples from all texts alike instead; half of them are of the best template, which favours
random pools. Two processes share the seeds, each with its own ledger; with --cache a run that was stopped continues.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from baselines.ground import Ground, Rates
from baselines.methods import Run, ours, paper, random_search
from baselines.show import header
from baselines.table import CAPPED, GEPA, OURS, PAPER, RANDOM, TENTH, TPE, Table
from baselines.tpe import tpe
from baselines.truths import TruthFile, measure_truth
from baselines.warming import share_ledgers, warm
from flipsearch.config import SearchConfig
from flipsearch.core.records import Context

SETTINGS: dict[str, dict[str, Any]] = {
    TENTH: {"num_contexts": 10_000, "first_rung": 8, "num_finalists": 1, "screen": 12},
    OURS: {"num_contexts": 10_000},
}
"""Our engine: only the budget of tokens ends it. With so few tokens it scores all candidates of a cohort before it
answers under any, which generates nothing and is counted as read; 4, 8 and 12 were tried here."""
WITHOUT_BUDGET: dict[str, dict[str, Any]] = {
    TENTH: {"num_contexts": 8, "cohort_size": 8, "first_rung": 8, "max_prompts": 40, "num_finalists": 1},
    OURS: {"num_contexts": 64},
}
"""For an engine without a budget: settings that come near."""
WORKERS = 2
WARM_FROM = 4
"""From this number of seeds on the whole library is generated first, in full batches; fewer seeds need little of it."""
METHODS = [PAPER, CAPPED, RANDOM, TPE, GEPA, TENTH, OURS]
SLOW = {TPE, GEPA}
SLOW_SEEDS = 5
"""Methods that generate in small batches run with so many seeds at most."""


def our_run(ground: Ground, name: str, seed: int, paper_tokens: int) -> Run:
    """Run our engine, at a tenth of the paper's tokens or at all of them."""
    settings, share = WITHOUT_BUDGET[name], 0.1 if name == TENTH else 1.0
    if "budget_tokens" in SearchConfig.model_fields:
        settings = SETTINGS[name] | {"budget_tokens": int(share * paper_tokens)}
    return ours(ground, seed, settings, sealed=name == OURS)


def gepa_run(ground: Ground, seed: int, sampling: str, paper_tokens: int) -> Run:
    """Run GEPA; its package is imported only here."""
    from baselines.reflective import reflective

    return reflective(ground, seed, sampling, paper_tokens)


def warm_part(place: Path, part: int) -> None:
    """Generate a part of the library; the work of one process."""
    ground = _ground(place)
    warm(ground, part, WORKERS)
    ground.ledger.close()


def run_seeds(place: Path, seeds: Sequence[int], names: Sequence[str], sampling: str) -> list[tuple[str, Run]]:
    """Run all methods with some seeds on one ledger; the work of one process."""
    ground, result = _ground(place), list[tuple[str, Run]]()
    for seed in seeds:
        paper_tokens = 0
        for name in names if seed < SLOW_SEEDS else [name for name in names if name not in SLOW]:
            start = time.monotonic()
            run = run_method(ground, name, seed, sampling, paper_tokens)
            paper_tokens = run.num_tokens if name == PAPER else paper_tokens
            result.append((name, run))
            print(f"  seed {seed}: {name}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    ground.ledger.close()
    return result


def run_method(ground: Ground, name: str, seed: int, sampling: str, paper_tokens: int) -> Run:
    """Run one method with one seed."""
    table: dict[str, Callable[[], Run]] = {
        PAPER: lambda: paper(ground, seed, sampling),
        CAPPED: lambda: paper(ground, seed, sampling, capped=True),
        RANDOM: lambda: random_search(ground, seed, sampling, paper_tokens),
        TPE: lambda: tpe(ground, seed, paper_tokens),
        GEPA: lambda: gepa_run(ground, seed, sampling, paper_tokens),
        TENTH: lambda: our_run(ground, TENTH, seed, paper_tokens),
        OURS: lambda: our_run(ground, OURS, seed, paper_tokens),
    }
    return table[name]()


def measure_truths(place: Path, contexts: Sequence[Context]) -> dict[str, Rates]:
    """Measure the true rates of some contexts; the work of one process."""
    ground = _ground(place)
    result = measure_truth(ground, contexts)
    ground.ledger.close()
    return result


def _ground(place: Path) -> Ground:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    return Ground(place)


def search_all(folder: Path, seeds: Sequence[int], names: Sequence[str], sampling: str) -> Table:
    """Return the runs of all methods, with the true rates of what they chose."""
    places = [folder / f"ledger-{number}.db" for number in range(WORKERS)]
    file = TruthFile(folder)
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        if len(seeds) >= WARM_FROM:
            list(pool.map(warm_part, places, range(WORKERS)))
            share_ledgers(places)
        searches = [pool.submit(run_seeds, p, seeds[n::WORKERS], names, sampling) for n, p in enumerate(places)]
        result = sorted((pair for job in searches for pair in job.result()), key=lambda pair: pair[1].seed)
        chosen = {run.context.context_id: run.context for _, run in result if run.context}
        unknown = [context for key, context in sorted(chosen.items()) if key not in file.rates]
        print(f"  now the true rates of {len(unknown)} contexts", file=sys.stderr, flush=True)
        for job in [pool.submit(measure_truths, p, unknown[n::WORKERS]) for n, p in enumerate(places) if unknown]:
            file.add(job.result())
    return Table({name: [run for method, run in result if method == name] for name in names}, file.rates)


def main() -> int:
    """Run everything, print the table and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, help="the paper's always runs")
    parser.add_argument("--cache", type=Path, help="folder in which ledgers and true rates are kept")
    parser.add_argument(
        "--sampling", choices=["template", "text"], default="template", help="sampling of random contexts"
    )
    args = parser.parse_args()
    names = [name for name in METHODS if name == PAPER or name in args.only]
    print(header(f"{args.seeds} seeds", f"random contexts by {args.sampling}"))
    if GEPA in names and not find_spec("gepa"):
        print("without GEPA: pip install gepa adds its row.")
        names.remove(GEPA)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = search_all(folder, range(args.seeds), names, args.sampling)
    table.show()
    if GEPA in names:
        print(f"'{GEPA}': GEPA's engine with random edits of sentences as proposals, as no large model runs here.")
    print(f"{time.monotonic() - start:.0f} s on {WORKERS} processes")
    return 0 if table.show_claims() else 1


if __name__ == "__main__":
    sys.exit(main())
