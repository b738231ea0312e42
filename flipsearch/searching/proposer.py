"""Proposes template contexts: Optuna's TPE by ask and tell, with a share drawn from a linear model of the slots.

The same contexts for the same seed and values. Nothing is stored: a study is rebuilt by asking and telling again, with
every value taken from the ledger.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from flipsearch.core.records import Context
from flipsearch.searching.setup import TEMPLATE, Space

Point = Mapping[str, Any]
SLOT_SHARE = 0.5
"""Share of a cohort that the slot model draws, after the first; it replaces what TPE repeats. TPE learns from all."""
SPARE = 2
"""Points drawn for each one wanted: some render a text that is known already."""
MAX_CANDIDATES = 5000
"""Points that the slot model chooses from; of a larger space, a random sample."""
MIN_STARTUP = 10
"""Values that TPE needs before it models anything."""


class Proposer:
    """Proposes contexts that were not proposed before, and learns from their values.

    The first proposals go through the templates in random order, one of each. A proposal that renders a known text gets
    the known value at once; one without text fails. Neither is returned.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._random = space, random.Random(seed)
        self._study = _optuna_study(seed, num_startup=max(MIN_STARTUP, len(space.names)))
        self._waiting: dict[str, list[optuna.Trial]] = {}
        self._values: dict[str, tuple[float, float] | None] = {}
        self._points: dict[str, dict[str, Any]] = {}
        self._seen: set[frozenset[tuple[str, Any]]] = set()
        size = len(space)
        indices = range(size) if size <= MAX_CANDIDATES else self._random.sample(range(size), MAX_CANDIDATES)
        self._candidates = [space.point(index) for index in indices]
        self._keys = [frozenset(point.items()) for point in self._candidates]
        self._slots = SlotModel(self._candidates)
        self.exhausted = False
        """Every context of the space has been proposed."""
        names = sorted(space.names)
        self._random.shuffle(names)
        for name in names:
            self._study.enqueue_trial({TEMPLATE: name})

    def ask(self, num: int) -> list[Context]:
        """Return `num` new contexts, or fewer if the space holds no more."""
        drawn = self._draw(num)
        # TPE first: waiting trials repel it, and the drawn ones are just where it should look.
        num_tpe = num - min(len(drawn), int(num * SLOT_SHARE))
        contexts = [context for _ in range(num_tpe) if (context := self._propose())]
        while len(contexts) < num:
            if drawn:
                self._study.enqueue_trial(drawn.pop(0))
            elif not self._enqueue_new():
                self.exhausted = True
                break
            contexts += [context] if (context := self._propose()) else []
        self._seen -= {frozenset(point.items()) for point in drawn}
        return contexts

    def expect(self, context: Context) -> None:
        """Note a context that comes from elsewhere: its value will follow, and it is not proposed here."""
        self._waiting.setdefault(context.context_id, [])

    def tell(self, context: Context, value: float | None, violation: float = 0.0) -> None:
        """Give the value of a context, 0 to 1, to be maximised, None if it failed; feasible while `violation` <= 0."""
        known = None if value is None else (value, violation)
        self._values[context.context_id] = known
        for trial in self._waiting.pop(context.context_id):
            self._finish(trial, known)

    def _propose(self) -> Context | None:
        """Ask Optuna for a point and return its context; None if it is known already or has no text."""
        trial = self._study.ask()
        context = self._space.suggest(trial)
        self._seen.add(frozenset(trial.params.items()))
        id = context.context_id
        if not context.text:
            self._finish(trial, None)
        elif id in self._values:
            self._finish(trial, self._values[id])
        elif id in self._waiting:
            # Its value is not known yet; left running, it keeps the sampler away from here until then.
            self._waiting[id].append(trial)
        else:
            self._waiting[id] = [trial]
            self._points[id] = trial.params
            return context
        return None

    def _finish(self, trial: optuna.Trial, known: tuple[float, float] | None) -> None:
        if known is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        value, violation = known
        trial.set_constraint("over_refusal", violation)
        self._study.tell(trial, value)

    def _enqueue_new(self) -> bool:
        """Make Optuna propose a new context, drawn or else the next from a random point on; False if none is left."""
        size = len(self._space)
        start = self._random.randrange(size)
        anywhere = (self._space.point((start + step) % size) for step in range(size))
        point = next(iter(self._draw(1)), None) or next(filter(self._is_new, anywhere), None)
        if point is None:
            return False
        self._study.enqueue_trial(point)
        return True

    def _draw(self, num: int) -> list[dict[str, Any]]:
        """Return up to `num` new points that the slot model draws, given the values so far."""
        points = {id: point for id, point in self._points.items() if id in self._values}
        tried = [(point, *known) for id, point in points.items() if (known := self._values[id]) is not None]
        untried = [index for index, key in enumerate(self._keys) if key not in self._seen]
        if not (tried and untried and num):
            return []
        drawn = self._slots.draw(tried, untried, SPARE * num, seed=self._random.randrange(2**32))
        return list(islice(filter(self._is_new, (self._candidates[index] for index in drawn)), num))

    def _is_new(self, point: dict[str, Any]) -> bool:
        """Whether a point gives a context that was not proposed yet. True only once per point: it counts as seen."""
        key = frozenset(point.items())
        if key in self._seen:
            return False
        self._seen.add(key)
        context = self._space.context(point)
        return bool(context.text) and context.context_id not in self._values.keys() | self._waiting.keys()


def _optuna_study(seed: int, num_startup: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # group=True is what conditional spaces need, and is marked experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, seed=seed, n_startup_trials=num_startup
        )
    return optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="maximize")


# The slot model.

NOISE, SPREAD = 0.25, 0.5
"""Standard deviations, in log-odds: of a measured flip rate around the sum of its slots, and of a slot effect."""
OVER_REFUSAL_NOISE, OVER_REFUSAL_SPREAD = 0.05, 0.1
"""The same for over-refusal rates, which are not transformed."""
CLIP = 0.01
"""Rates are kept this far inside of 0 and 1 before their log-odds are taken."""


class SlotModel:
    """Slot effects on flip rate and over-refusal, over a fixed list of points.

    A slot is one choice: a template, one of its values, a placement. To first order slots add up (in log-odds), and a
    slot of one name ("strength = firm") does much the same in every template. Both make good guesses possible after a
    cohort or two, where TPE still treats every template apart. Bayesian linear regression with Thompson sampling
    (Thompson 1933, doi:10.1093/biomet/25.3-4.285): each draw takes the best point under one plausible set of slot
    effects, so that what is uncertain is tried too.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        slots = sorted({slot for point in points for slot in _slots(point)})
        self._column = {slot: index for index, slot in enumerate(slots)}
        self._rows = self._features(points)

    def draw(
        self, tried: Sequence[tuple[Point, float, float]], untried: Sequence[int], num: int, seed: int
    ) -> list[int]:
        """Return up to `num` different indices among `untried`, each the best under one draw of the slot effects.

        `tried` are points, their flip rates, and by how much they break the cap: feasible while <= 0.
        """
        num = min(num, len(untried))
        generator = np.random.default_rng(seed)
        points, values, violations = zip(*tried, strict=True)
        features = self._features(points)
        rates = np.clip(np.asarray(values), CLIP, 1 - CLIP)
        scores = self._draws(features, np.log(rates / (1 - rates)), NOISE, SPREAD, num, generator)
        excess = self._draws(features, np.asarray(violations), OVER_REFUSAL_NOISE, OVER_REFUSAL_SPREAD, num, generator)
        # Infeasible points come after every feasible one, the least infeasible first. Rounded, so that the last bits of
        # a linear algebra library do not decide between equals.
        ranked = np.where(excess <= 0, scores, scores.min() - 1 - excess).round(6)
        left = list(untried)
        return [left.pop(int(ranked[left, column].argmax())) for column in range(num)]

    def _draws(
        self,
        features: NDArray[np.float64],
        targets: NDArray[np.float64],
        noise: float,
        spread: float,
        num: int,
        generator: np.random.Generator,
    ) -> NDArray[np.float64]:
        """Predictions for all points under `num` draws from the posterior of the slot effects: (points, num)."""
        mean = targets.mean()
        precision = features.T @ features / noise**2 + np.eye(features.shape[1]) / spread**2
        factor = np.linalg.cholesky(precision)
        centre = np.linalg.solve(precision, features.T @ (targets - mean)) / noise**2
        deviations = np.linalg.solve(factor.T, generator.standard_normal((len(centre), num)))
        drawn: NDArray[np.float64] = mean + self._rows @ (centre[:, None] + deviations)
        return drawn

    def _features(self, points: Sequence[Point]) -> NDArray[np.float64]:
        """One row per point, with ones in the columns of its slots."""
        rows = np.zeros((len(points), len(self._column)))
        for row, point in zip(rows, points, strict=True):
            row[[self._column[slot] for slot in _slots(point)]] = 1.0
        return rows


def _slots(point: Point) -> list[str]:
    """A template's own slots, and those that it shares with others by name."""
    template = point[TEMPLATE]
    own = [f"{name}={value!r}" for name, value in point.items()]
    shared = [f"{name.removeprefix(template)}={value!r}" for name, value in point.items() if name != TEMPLATE]
    return own + shared
