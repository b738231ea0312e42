"""Search methods in invented worlds at equal tokens: what the context that each takes truly does.

    python benchmarks/search_worlds.py [--seeds 10] [--worlds NAME …] [--kept-back] [--only METHOD …] [--cache FOLDER]
    python benchmarks/search_worlds.py --bound [--seeds 10] [--cache FOLDER]
    python benchmarks/search_worlds.py --claims [--seeds 40]

In a world every rate follows from a formula (worlds/world.py), so true flip rates and over-refusals of the whole
population of prompts are exact. The budget of a seed is what argmax over 30 contexts takes; seeds are shared, so
methods are compared in pairs. A context above the cap of 10 % added refusals counts for 3 points less for each point
above it. "Regret" is to the best that any method reached in that world and seed. The engine was tuned in WORLDS;
--kept-back runs those in which nothing was tuned.

--bound prints our rollouts, harmful and benign, beside the least that identify a context within 2 points of the best of
those that were tried: all of a run, and those until the context that the page would then show first is within 2 points
of the best of the run and stays so. The least is that for contexts that tell nothing of each other: a method that errs
in 5 % of cases at most must see each worse one of rate p on average kl(.05, .95) / kl(p, best + 2 points) times, or it
could not tell that this is not the best (Kaufmann, Cappe and Garivier 2016, JMLR 17; Garivier and Kaufmann 2016).
Contexts above the cap, and benign prompts, count as nothing in it. Our contexts are answered on the same prompts, and
texts that are alike predict each other, so that it is no bound for us, and the true rates that it compares are those of
all prompts, not of 5 to 90. It says how hard the choice among these contexts is.

--claims runs whole studies with placebos and confirm split, and prints how often the interval of the winner's flip rate
holds its true one, how often a study claims that its winner beats neutral text where that is not so, and how the chance
that studies state (that a context which was stopped early is truly better than all that finished) fits how often it is.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from baselines.show import claim, header
from flipsearch.config import SearchConfig
from flipsearch.core.records import Context
from flipsearch.searching import prepare_search
from worlds.methods import CAP, METHODS, Meter, study_of
from worlds.world import KEPT_BACK, WORLDS, Rules, World, make_world

WORKERS = 2
PENALTY = 3.0
CLOSE, ERROR = 0.02, 0.05
RIVAL, PAPER, OURS = "+ surrogate", "argmax over 30", "ours"
NEUTRAL, GEPA = "neutral", "GEPA's engine"


def with_gepa(meter: Meter, seed: int) -> Context | None:
    """Run GEPA's engine; its package is imported only here."""
    from worlds.gepa_engine import gepa_engine

    return gepa_engine(meter, seed)


def run(rules: Rules, name: str, seed: int) -> dict[str, float]:
    """Run one method in one world, and return what is true of its context and what it took."""
    world = make_world(rules, seed)
    meter = Meter(world)
    METHODS[PAPER](meter, seed)
    budget, meter = meter.num_tokens, Meter(world, meter.num_tokens)
    start = time.process_time()
    context = METHODS[name](meter, seed)
    flips, refusals = world.true_rates(context) if context else (0.0, 0.0)
    tried = [world.true_rates(tried) for tried in meter.tried]
    leaders = [(num, worth_of(world, leader)) for num, leader in meter.leaders]
    return {
        "bound": least_rollouts([flips for flips, refusals in tried if refusals <= CAP]),
        "until": rollouts_until(leaders, max((worth_of(world, tried) for tried in meter.tried), default=0.0)),
        "flips": flips,
        "refusals": refusals,
        "worth": worth_of(world, context) if context else 0.0,
        "tokens": meter.num_tokens / budget,
        "harmful": meter.num_harmful,
        "benign": meter.num_benign,
        "seconds": time.process_time() - start,
    }


def worth_of(world: World, context: Context) -> float:
    """Return the true flip rate of a context, less where it is above the cap."""
    flips, refusals = world.true_rates(context)
    return max(0.0, flips - PENALTY * max(0.0, refusals - CAP))


def rollouts_until(leaders: Sequence[tuple[int, float]], best: float) -> float:
    """Return after how many rollouts the leader stays within CLOSE of the best; nan if it does not at the end."""
    until = float("nan")
    for num, worth in reversed(leaders):
        if worth < best - CLOSE:
            break
        until = num
    return until


def least_rollouts(rates: Sequence[float]) -> float:
    """Return the least mean number of rollouts that identify a rate within CLOSE of the best; see --bound."""
    best = max(rates, default=0.0)
    target = min(best + CLOSE, 1 - 1e-6)
    worse = np.clip([rate for rate in rates if rate < best - CLOSE], 1e-6, 1.0)
    return float((divergence(ERROR, 1 - ERROR) / divergence(worse, target)).sum())


def divergence(p: Any, q: float) -> Any:
    """Return Kullback and Leibler's divergence of one coin from another."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def compare_with_bound(worlds: Sequence[Rules], num_seeds: int, cache: Path | None) -> None:
    """Print our rollouts beside the least of --bound, for each world: the median over seeds of their ratio."""
    jobs = [(rules, OURS, seed, cache) for rules in worlds for seed in range(num_seeds)]
    with ProcessPoolExecutor(WORKERS) as pool:
        runs = iter(list(pool.map(kept_run, jobs)))
    for rules in worlds:
        rows = [row for row in (next(runs) for _ in range(num_seeds)) if row.get("bound")]
        spent, least, until = np.array([[row[key] for row in rows] for key in ("harmful", "bound", "until")])
        spent += [row["benign"] for row in rows]
        close = ~np.isnan(until)
        print(f"{rules.name}: {spent.mean():,.0f} rollouts, least {least.mean():,.0f}", end="")
        for what, ratios in (("all", spent / least), ("until close", (until / least)[close])):
            shown = f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})" if len(ratios) else "-"
            print(f"; {what} {shown}", end="")
        print(f" in {close.sum()} of {len(rows)} seeds")


def kept_run(job: tuple[Rules, str, int, Path | None]) -> dict[str, float]:
    """Return a run from the cache, or run it."""
    rules, name, seed, cache = job
    path = cache / f"{rules.name}, {name}, {seed}.json" if cache else None
    if path and path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    done = run(rules, name, seed)
    if path:
        path.write_text(json.dumps(done), encoding="utf-8")
    return done


def compare(worlds: Sequence[Rules], names: Sequence[str], num_seeds: int, cache: Path | None) -> bool:
    """Run all methods in all worlds, print a row for each, and return whether the claims hold."""
    jobs = [(rules, name, seed, cache) for rules in worlds for name in names for seed in range(num_seeds)]
    with ProcessPoolExecutor(WORKERS) as pool:
        runs = iter(pool.map(kept_run, jobs))
        worth: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        for rules in worlds:
            done = {name: [next(runs) for _ in range(num_seeds)] for name in names}
            best = np.max([[row["worth"] for row in of] for of in done.values()], axis=0)
            print(f"\n{rules.name}: {rules.num_unsafe} unsafe and {rules.num_benign} benign prompts")
            print(
                f"  {'':<16}{'true flips':>14}{'refusals':>10}{'worth':>14}{'regret':>8}{'harmful':>9}{'benign':>8}  s"
            )
            for name, of in done.items():
                column = {key: 100 * np.array([row[key] for row in of]) for key in of[0]}
                worth[rules.name, name] = column["worth"]
                print(
                    f"  {name:<16}{_mean(column['flips']):>14}{column['refusals'].mean():>10.1f}"
                    f"{_mean(column['worth']):>14}{(100 * best - column['worth']).mean():>8.1f}"
                    f"{column['harmful'].mean() / 100:>9,.0f}{column['benign'].mean() / 100:>8,.0f}"
                    f"{column['seconds'].mean() / 100:>4.0f}",
                    flush=True,
                )
    return _claims(worlds, names, worth)


def _claims(worlds: Sequence[Rules], names: Sequence[str], worth: dict[tuple[str, str], Any]) -> bool:
    if not {RIVAL, PAPER, OURS} <= set(names):
        return True
    holds = []
    print()
    for rules in worlds:
        over_baseline, over_paper = (worth[rules.name, OURS] - worth[rules.name, name] for name in (RIVAL, PAPER))
        spread = over_baseline.std(ddof=1) / len(over_baseline) ** 0.5
        holds.append(over_baseline.mean() > -2 * spread and over_paper.mean() >= 5)
        text = f"{rules.name}: {_mean(over_baseline)} over {RIVAL} (not below by 2 errors), "
        print(claim(text + f"{_mean(over_paper)} over {PAPER} (5 required)", holds=holds[-1]))
    every = np.concatenate([worth[rules.name, OURS] - worth[rules.name, RIVAL] for rules in worlds])
    print(f"all worlds: {_mean(every)} over {RIVAL}")
    return all(holds)


def _mean(values: Any) -> str:
    return f"{values.mean():.1f} +- {values.std(ddof=1) / len(values) ** 0.5:.1f}"


@dataclass(frozen=True)
class StudyClaims:
    """What a whole study said, and what was true."""

    has_winner: bool
    covers: bool = False
    """The interval of the winner's flip rate holds the true one."""
    claims: bool = False
    """It says that the winner beats neutral text."""
    is_true: bool = False
    chance: float | None = None
    """Stated: that a context that was stopped early is better than all that finished, by more than the tolerance."""
    was_better: bool = False


def study_claims(job: tuple[Rules, int]) -> StudyClaims:
    """Run a whole study in a world."""
    rules, seed = job
    world = make_world(rules, seed)
    config = SearchConfig(seed=seed, num_contexts=48, max_over_refusal=CAP, depths=(), benign_context=False)
    setup = prepare_search(config, world.library, world.prompts())
    stops: list[dict[str, Any]] = []

    def record(event: str, /, **facts: Any) -> None:
        if event == "stopped_early":
            stops.append(facts)

    study = study_of(world, setup, record)
    chance, was_better = None, False
    for stop in stops:
        contexts = {trial.context.context_id: trial.context for trial in study.trials}
        rates = {id: world.true_rates(contexts[id]) for id in (*stop["stopped"], *stop["finished"])}
        worth = {id: flips if refusals <= CAP else 0.0 for id, (flips, refusals) in rates.items()}
        stopped, finished = (max(worth[id] for id in stop[state]) for state in ("stopped", "finished"))
        chance, was_better = stop["chance_of_better"], stopped > finished + stop["tolerance"]
    if study.winner is None:
        return StudyClaims(False, chance=chance, was_better=was_better)
    true, measured = world.true_rates(study.winner.context)[0], study.winner.final.flip_rate
    neutral = next(row.context() for row in setup.placebos if row.template.name == NEUTRAL)
    beaten = max(world.true_rates(neutral)[0], world.true_rates(Context(""))[0])
    covers = measured.low <= true <= measured.high
    return StudyClaims(True, covers, study.winner.beats_placebo, true > beaten, chance, was_better)


def check_claims(worlds: Sequence[Rules], num_seeds: int) -> bool:
    """Print how often intervals hold the truth, how often claims are false, and how stated chances fit."""
    jobs = [(rules, seed) for rules in worlds for seed in range(num_seeds)]
    with ProcessPoolExecutor(WORKERS) as pool:
        done = list(pool.map(study_claims, jobs))
    winners = [(rules, study) for (rules, _), study in zip(jobs, done, strict=True) if study.has_winner]
    held = [study.covers for rules, study in winners if not rules.errors]
    num_claims = sum(study.claims for _, study in winners)
    num_false = sum(study.claims and not study.is_true for _, study in winners)
    print(f"{len(winners)} of {len(jobs)} studies have a winner; {num_claims} claim to beat neutral text")
    covered, false = sum(held) / max(1, len(held)), num_false / len(jobs)
    stated = [(study.chance, study.was_better) for study in done if study.chance is not None]
    chance, better = (float(np.mean([pair[part] for pair in stated])) if stated else 0.0 for part in (0, 1))
    text = f"intervals hold the true flip rate in {covered:.1%} of {len(held)} studies without judge errors (94 %)"
    results = [(text, covered >= 0.94), (f"false claims in {false:.1%} of studies (2.5 %)", false <= 0.025)]
    text = f"a context that was stopped early is better in {better:.1%} of {len(stated)} studies, stated {chance:.1%}"
    results.append((f"{text} (within 5 points)", abs(better - chance) <= 0.05))
    for text, holds in results:
        print(claim(text, holds=holds))
    return all(holds for _, holds in results)


def main() -> int:
    """Run the worlds, print the tables and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--worlds", nargs="+", choices=[rules.name for rules in WORLDS])
    parser.add_argument("--kept-back", action="store_true", help="the worlds in which nothing was tuned")
    if find_spec("gepa"):
        METHODS[GEPA] = with_gepa
    else:
        print("without GEPA: pip install gepa adds its row.")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bound", action="store_true", help="our rollouts beside the least that identify the best")
    parser.add_argument("--claims", action="store_true", help="whole studies: coverage and false claims")
    parser.add_argument("--cache", type=Path, help="folder in which runs are kept")
    args = parser.parse_args()
    known = KEPT_BACK if args.kept_back else WORLDS
    worlds = [rules for rules in known if not args.worlds or rules.name in args.worlds]
    print(header(f"{args.seeds} seeds", "invented worlds"))
    if args.cache:
        args.cache.mkdir(parents=True, exist_ok=True)
    if args.bound:
        compare_with_bound(worlds, args.seeds, args.cache)
        return 0
    holds = check_claims(worlds, args.seeds) if args.claims else compare(worlds, args.only, args.seeds, args.cache)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
