"""Proposes template contexts: Optuna's TPE by ask and tell.

The same contexts for the same seed and values. Nothing is stored: a study is rebuilt by asking and telling again, with
every value taken from the ledger.
"""

import random
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from flipsearch.core.records import Context
from flipsearch.searching.setup import TEMPLATE, Space

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
        self._seen: set[frozenset[tuple[str, Any]]] = set()
        self.exhausted = False
        """Every context of the space has been proposed."""
        names = sorted(space.names)
        self._random.shuffle(names)
        for name in names:
            self._study.enqueue_trial({TEMPLATE: name})

    def ask(self, num: int) -> list[Context]:
        """Return `num` new contexts, or fewer if the space holds no more."""
        contexts = [context for _ in range(num) if (context := self._propose())]
        while len(contexts) < num:
            if not self._enqueue_new():
                self.exhausted = True
                break
            contexts += [context] if (context := self._propose()) else []
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
        """Make Optuna propose the next new context from a random point on; False if none is left."""
        size = len(self._space)
        start = self._random.randrange(size)
        anywhere = (self._space.point((start + step) % size) for step in range(size))
        point = next(filter(self._is_new, anywhere), None)
        if point is None:
            return False
        self._study.enqueue_trial(point)
        return True

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
