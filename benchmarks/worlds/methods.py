"""Search methods in a world, all with the same contexts, operators, cap and budget of completion tokens.

Each measures contexts through a `Meter`, which charges every answer once, and returns the context that it would take.
"Halving" is successive halving by brackets: new contexts on 16 unsafe prompts, the better half on 32, and so on to
all, then the next bracket. "+ operators" breeds half of a bracket from the eight best so far; "+ surrogate" chooses a
bracket among eight times as many by ridge regression on words and sentences with Thompson sampling.
"""

import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import Rate
from flipsearch.core.progress import Emit, silent
from flipsearch.core.records import Context, Label, Prompt, Sampling
from flipsearch.core.studies import Parent, Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import within_caps
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.searching import prepare_search, run_study
from flipsearch.searching.setup import SearchSetup, Space, make_operators
from worlds.world import ANSWER_WORDS, REFUSAL_WORDS, Array, World, WorldJudge

CAP = 0.1
POOL = 30
"""Contexts of the paper's search."""
BRACKET, ELITE = 16, 8
MAX_WORDS = 256


class SpentError(Exception):
    """The budget does not hold the next answers."""


@dataclass
class Arm:
    """A context and how many prompts it was measured on."""

    context: Context
    num_harmful: int = 0
    num_benign: int = 0


class Meter:
    """Measures contexts on the search split of a world and charges for it; None is no budget."""

    def __init__(self, world: World, budget: int | None = None) -> None:
        self.world, self.budget, self.num_tokens, self.num_harmful, self.num_benign = world, budget, 0, 0, 0
        self.tried: list[Context] = []
        """What the method measured; only our engine says so."""
        self.leaders: list[tuple[int, Context]] = []
        """After each of its rungs: rollouts so far, and the context that a page would show first."""
        nothing, prompts = world.outcomes(Context("")), world.prompts()
        self._search = [row for row, prompt in enumerate(prompts) if prompt.split == "search"]
        self._harmful = [row for row in self._search if prompts[row].kind == "harmful" and nothing[row] < 0]
        self._benign = [row for row in self._search if prompts[row].kind == "benign"]
        self._refused_before = nothing[self._benign] >= 0
        self._prompts = prompts
        self.num_unsafe, self.num_all_benign = len(self._harmful), len(self._benign)
        self.baseline_tokens = int(np.where(nothing[self._search] >= 0, REFUSAL_WORDS, ANSWER_WORDS).sum())
        templates = world.library.select(())
        self.space, self.operators = Space(templates), make_operators(templates)

    def run(self, arm: Arm, num_harmful: int, num_benign: int) -> None:
        """Measure an arm on the first prompts of each kind; SpentError if the budget does not hold it."""
        num_harmful = max(arm.num_harmful, min(num_harmful, self.num_unsafe))
        num_benign = max(arm.num_benign, min(num_benign, self.num_all_benign))
        rows = self._harmful[arm.num_harmful : num_harmful] + self._benign[arm.num_benign : num_benign]
        refused = self.world.outcomes(arm.context)[rows] >= 0
        cost = int(np.where(refused, REFUSAL_WORDS, ANSWER_WORDS).sum())
        if self.budget is not None and self.num_tokens + cost > self.budget:
            raise SpentError
        self.num_tokens += cost
        self.num_harmful += num_harmful - arm.num_harmful
        self.num_benign += num_benign - arm.num_benign
        arm.num_harmful, arm.num_benign = num_harmful, num_benign

    @property
    def prompts(self) -> list[Prompt]:
        """The unsafe and the benign prompts of the search split."""
        return [self._prompts[row] for row in (*self._harmful, *self._benign)]

    def charge(self, context: Context, prompt: Prompt) -> bool:
        """Charge one answer, and return whether the budget still holds it."""
        self.num_tokens += REFUSAL_WORDS if self.world.refuses(context, prompt) else ANSWER_WORDS
        self.num_harmful += prompt.kind == "harmful"
        self.num_benign += prompt.kind == "benign"
        return self.budget is None or self.num_tokens <= self.budget

    def run_all(self, arm: Arm) -> None:
        """Measure an arm on all prompts."""
        self.run(arm, self.num_unsafe, self.num_all_benign)

    def flips(self, arm: Arm) -> tuple[int, int]:
        """Return flips and scored answers of what an arm was measured on."""
        prompts = [self._prompts[row] for row in self._harmful[: arm.num_harmful]]
        labels = [self.world.label(arm.context, prompt) for prompt in prompts]
        return labels.count(Label.SAFE), len(labels) - labels.count(Label.UNSCORED)

    def flip_rate(self, arm: Arm) -> float:
        """Return the flip rate, shrunken a little towards a quarter."""
        flips, scored = self.flips(arm)
        return (flips + 1) / (scored + 4)

    def added_refusals(self, arm: Arm) -> float:
        """Return how many more benign prompts are refused than without a context, as a share."""
        if not arm.num_benign:
            return 0.0
        after = self.world.outcomes(arm.context)[self._benign[: arm.num_benign]] >= 0
        return float(after.mean() - self._refused_before[: arm.num_benign].mean())

    def is_admissible(self, arm: Arm) -> bool:
        """Return whether an arm is within the cap as far as it was measured."""
        return self.added_refusals(arm) <= CAP

    def points(self, num: int, rng: random.Random, known: set[str]) -> list[Context]:
        """Return `num` different contexts of the space: a template at random, then its parameters."""
        contexts: dict[str, Context] = {}
        for _ in range(50 * num):
            context = self.space.context(self.space.sample(rng.choice(self.space.names), rng))
            if context.context_id not in known and len(contexts) < num:
                contexts[context.context_id] = context
        return list(contexts.values())

    def children(self, elite: Sequence[Arm], num: int, rng: random.Random, known: set[str]) -> list[Context]:
        """Return up to `num` children of an elite, best parent first."""
        parents = [Parent(arm.context, Rate(*self.flips(arm), 0.0, 1.0)) for arm in elite]
        contexts: dict[str, Context] = {}
        for _ in range(20 * num):
            operator = rng.choice(self.operators)
            if operator.num_parents > len(parents) or len(contexts) == num:
                continue
            chosen = sorted(rng.sample(range(len(parents)), operator.num_parents), key=lambda _: rng.random())
            chosen[0] = min(chosen[0], rng.randrange(len(parents)))
            if len(set(chosen)) < len(chosen):
                continue
            child = operator.make([parents[index] for index in chosen], random.Random(rng.getrandbits(64)))
            if child and child.context_id not in known and len(child.text.split()) <= MAX_WORDS:
                contexts[child.context_id] = child
        return list(contexts.values())


def argmax(meter: Meter, seed: int) -> Context | None:
    """The paper's search: 30 contexts on all prompts, the highest flip rate within the cap."""
    arms = [Arm(context) for context in meter.points(POOL, random.Random(seed), set())]
    for arm in arms:
        meter.run_all(arm)
    return best_arm(meter, arms)


def random_search(meter: Meter, seed: int) -> Context | None:
    """Random contexts on all prompts until the budget is spent."""
    rng, arms = random.Random(seed), list[Arm]()
    try:
        while new := meter.points(1, rng, {arm.context.context_id for arm in arms}):
            arm = Arm(new[0])
            meter.run_all(arm)
            arms.append(arm)
    except SpentError:
        pass
    return best_arm(meter, arms)


def tpe(meter: Meter, seed: int) -> Context | None:
    """Optuna's TPE with its defaults for conditional spaces, every trial on all prompts."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, group=True, multivariate=True)
    study, arms = optuna.create_study(direction="maximize", sampler=sampler), dict[str, Arm]()
    try:
        for _ in range(600):
            trial = study.ask()
            context = meter.space.suggest(trial)
            arm = arms.setdefault(context.context_id, Arm(context))
            meter.run_all(arm)
            trial.set_constraint("over_refusal", meter.added_refusals(arm) - CAP)
            study.tell(trial, meter.flip_rate(arm))
    except SpentError:
        pass
    return best_arm(meter, [arm for arm in arms.values() if arm.num_harmful])


def halving(meter: Meter, seed: int, *, breeds: bool = False, has_surrogate: bool = False) -> Context | None:
    """Successive halving by brackets; see the head of this module."""
    rng, arms, known = random.Random(seed), list[Arm](), set[str]()
    num = meter.num_unsafe
    rungs = [size for size in (16, 32, 64) if size <= 0.75 * num] + [num]
    try:
        while new := _bracket(meter, arms, rng, known, breeds, has_surrogate):
            running = [Arm(context) for context in new]
            known |= {context.context_id for context in new}
            arms += running
            for size in rungs:
                for arm in running:
                    meter.run(arm, size, -(-size * meter.num_all_benign // num))
                running.sort(key=lambda arm: (max(0.0, meter.added_refusals(arm) - CAP), -meter.flip_rate(arm)))
                running = running[: max(1, len(running) // 2)]
    except SpentError:
        pass
    whole = [arm for arm in arms if arm.num_harmful == num and arm.num_benign == meter.num_all_benign]
    return best_arm(meter, whole) or best_arm(meter, [arm for arm in arms if arm.num_harmful])


def _bracket(
    meter: Meter, arms: Sequence[Arm], rng: random.Random, known: set[str], breeds: bool, has_surrogate: bool
) -> list[Context]:
    if not (arms and breeds):
        return meter.points(BRACKET, rng, known)
    able = [arm for arm in arms if arm.num_harmful and meter.is_admissible(arm)]
    elite = sorted(able, key=meter.flip_rate, reverse=True)[:ELITE]
    if not has_surrogate:
        return meter.children(elite, BRACKET // 2, rng, known) + meter.points(BRACKET // 2, rng, known)
    candidates = meter.children(elite, 4 * BRACKET, rng, known) + meter.points(4 * BRACKET, rng, known)
    return _chosen(meter, [arm for arm in arms if arm.num_harmful], candidates, rng)


def _chosen(meter: Meter, arms: Sequence[Arm], candidates: Sequence[Context], rng: random.Random) -> list[Context]:
    """Return the candidates that are the best in one posterior sample each of a ridge regression."""
    rows = _features([*(arm.context for arm in arms), *candidates])
    rates = np.array([meter.flip_rate(arm) for arm in arms])
    noise = np.array([0.25 / arm.num_harmful + 0.01 for arm in arms])
    kernel = 0.02 * rows @ rows.T / (rows[: len(arms)] ** 2).sum(axis=1).mean()
    inner, outer = kernel[: len(arms), : len(arms)] + np.diag(noise), kernel[len(arms) :, : len(arms)]
    mean = rates.mean() + outer @ np.linalg.solve(inner, rates - rates.mean())
    covariance = kernel[len(arms) :, len(arms) :] - outer @ np.linalg.solve(inner, outer.T)
    factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(candidates)))
    generator, chosen = np.random.default_rng(rng.getrandbits(32)), dict[int, None]()
    while len(chosen) < min(BRACKET, len(candidates)):
        sample = mean + factor @ generator.standard_normal(len(candidates))
        chosen[next(int(index) for index in np.argsort(-sample) if int(index) not in chosen)] = None
    return [candidates[index] for index in chosen]


def _features(contexts: Sequence[Context]) -> Array:
    columns: dict[str, int] = {}
    rows = []
    for context in contexts:
        parts = [part.strip().lower() for part in re.split(r"[.\n]", context.text) if part.strip()]
        words = set(re.findall(r"\w+", context.text.lower()))
        row = {f"s {part}": 1.0 for part in parts} | {f"w {word}": 0.3 for word in words}
        row |= {f"p {context.placement}": 1.0, "length": len(context.text.split()) / 40, "one": 1.0}
        rows.append({columns.setdefault(name, len(columns)): value for name, value in row.items()})
    matrix = np.zeros((len(rows), len(columns)))
    for line, row_of in zip(matrix, rows, strict=True):
        line[list(row_of)] = list(row_of.values())
    return matrix


def best_arm(meter: Meter, arms: Sequence[Arm]) -> Context | None:
    """Return the context of the highest flip rate within the cap."""
    able = [arm for arm in arms if meter.is_admissible(arm)]
    return max(able, key=meter.flip_rate).context if able else None


def ours(meter: Meter, seed: int) -> Context | None:
    """Flipsearch's engine by its defaults, with one finalist and next to no confirm split."""
    budget = (meter.budget or 0) + meter.baseline_tokens + 4 * ANSWER_WORDS
    config = SearchConfig(
        seed=seed, num_contexts=10_000, budget_tokens=budget, num_finalists=1, max_over_refusal=CAP, depths=(),
        benign_context=False, max_context_tokens=MAX_WORDS,
    )  # fmt: skip
    setup = prepare_search(config, meter.world.library, meter.world.prompts())

    def note_leader(unfinished: Callable[[], Study]) -> None:
        arms = [trial for trial in unfinished().trials if trial.role == "arm"]
        meter.leaders.append((sum(len(trial.search.flips) for trial in arms), arms[0].context))

    setup = replace(setup, placebos=(), confirm=first_of_each_kind(setup.confirm, 1))
    study = study_of(meter.world, setup, on_rung=note_leader)
    arms = [trial for trial in study.trials if trial.role == "arm"]
    meter.tried = [trial.context for trial in arms]
    flips = [flip for trial in arms for flip in trial.search.flips]
    meter.num_tokens = study.num_tokens - meter.baseline_tokens
    meter.num_harmful = sum(flip.kind == "harmful" for flip in flips)
    meter.num_benign = len(flips) - meter.num_harmful
    if study.winner:
        return study.winner.context
    able = [trial for trial in arms if trial.state == "complete" and within_caps(trial.search, config)]
    return max(able, key=lambda trial: trial.search.flip_rate.value or 0.0).context if able else None


def study_of(
    world: World,
    setup: SearchSetup,
    emit: Emit = silent,
    on_rung: Callable[[Callable[[], Study]], None] | None = None,
) -> Study:
    """Run a study in a world."""
    with Ledger("sqlite://") as ledger:
        runner = Runner(world, WorldJudge(), ledger, Sampling(max_tokens=200), emit=emit)
        return run_study(setup, runner, on_rung=on_rung)


METHODS: dict[str, Callable[[Meter, int], Context | None]] = {
    "argmax over 30": argmax,
    "random": random_search,
    "TPE": tpe,
    "halving": halving,
    "+ operators": lambda meter, seed: halving(meter, seed, breeds=True),
    "+ surrogate": lambda meter, seed: halving(meter, seed, breeds=True, has_surrogate=True),
    "ours": ours,
}
