"""Where the next contexts come from: templates by the proposer, children of the elite by the breeder, the best of both.

    elite --breeder--> children ─┐
                                 ├─ candidates --screen--> the most promising, and some whatever the screen predicts
    templates --proposer-->  new ─┘

The proposer is Optuna's TPE by ask and tell. The same contexts for the same seed, elites and values: nothing is stored,
a study is rebuilt by asking and telling again, with every value taken from the ledger.
"""

import random
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.breeder import Breeder
from flipsearch.searching.filters import ContextFilter
from flipsearch.searching.screening import Screen, ScreenPrediction
from flipsearch.searching.setup import TEMPLATE, SearchSetup, Space

MIN_STARTUP = 10
"""Values that TPE needs before it models anything."""
CHECK_SHARE = 0.25
"""Share of a screened cohort that races whatever the screen predicts: else it is only checked on what it likes."""


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


class Proposals:
    """Proposes contexts that were not proposed before; its proposer and its breeder learn from their results."""

    def __init__(self, setup: SearchSetup, runner: Runner, base: SplitBaseline, screen: Screen) -> None:
        config, prompts = setup.config, [prompt.text for prompt in base.prompts]
        count_tokens, same = runner.backend.count_tokens, setup.same_placements
        self._filter = ContextFilter(prompts, count_tokens, config.max_context_tokens, same)
        self.proposer = Proposer(setup.space, config.seed)
        self.breeder = Breeder(setup.operators, self._filter, config.seed)
        self._screen, self._config, self._cap = screen, config, base.highest_refusals(config.refusal_cap())
        self._random = random.Random(config.seed)
        self._unscreened: list[Context] = []
        """Proposed, but neither screened nor raced yet."""
        self._passed_over: list[ScreenPrediction] = []
        """Screened, and not chosen."""

    def ask(self, num: int, elite: Sequence[Parent]) -> list[Context]:
        """Return up to `num` new contexts; fewer only if neither templates nor operators give more."""
        wanted = self._screen.num_candidates(num, self._config.screen)
        candidates, self._unscreened = self._unscreened[:wanted], self._unscreened[wanted:]
        num_new = wanted - len(candidates)
        children = self.breeder.breed(elite, int(num_new * self._config.breed)) if elite else []
        for child in children:
            self.proposer.expect(child)
        candidates += [*children, *self.proposer.ask(num_new - len(children))]
        for context in candidates:
            self._filter.add(context)
        chosen = candidates if len(candidates) <= num else self._screened(candidates, num)
        # When nothing new is left, the most promising of those that the screen passed over race too.
        left = num - len(chosen)
        self._passed_over.sort(key=self._promise)
        again, self._passed_over = self._passed_over[:left], self._passed_over[left:]
        for prediction in again:
            self.proposer.expect(prediction.context)
        return chosen + [prediction.context for prediction in again]

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of where the contexts came from."""
        if self.proposer.exhausted and num_arms < self._config.num_contexts:
            return [f"The space is exhausted: it holds {num_arms} different contexts."]
        return []

    def _screened(self, candidates: Sequence[Context], num: int) -> list[Context]:
        """Return the most promising candidates and some others, and give the rest to the proposer as predicted.

        A context that could not be probed races if fewer than `num` were chosen, and else waits for the next cohort.
        """
        predictions = self._screen.predict(candidates)
        probed = {prediction.context.context_id for prediction in predictions}
        unprobed = [context for context in candidates if context.context_id not in probed]
        ranked = sorted(predictions, key=self._promise)
        num_checks = int(num * CHECK_SHARE)
        best, rest = ranked[: num - num_checks], ranked[num - num_checks :]
        checks = self._random.sample(rest, min(len(rest), num_checks))
        chosen = [prediction.context for prediction in (*best, *checks)]
        left = num - len(chosen)
        self._unscreened += unprobed[left:]
        for prediction in rest:
            if prediction not in checks:
                violation = prediction.over_refusal_rate - self._cap
                self.proposer.tell(prediction.context, prediction.flip_rate, violation)
                self._passed_over.append(prediction)
        return chosen + unprobed[:left]

    def _promise(self, prediction: ScreenPrediction) -> tuple[float, float, int]:
        """Within the cap first, then by expected flip rate; the shorter of two equal ones."""
        excess = max(0.0, prediction.over_refusal_rate - self._cap)
        return excess, -prediction.flip_rate, len(prediction.context.text)
