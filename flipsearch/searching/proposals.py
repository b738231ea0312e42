"""Where the next contexts come from: templates by the proposer, children of the elite by the breeder, the best of both.

    elite --breeder--> children ─┐
                                 ├─ candidates --screen--> the most promising, and some whatever the screen predicts
    templates --proposer-->  new ─┘

The same contexts for the same seed, elites and values, so that a study can be run again.
"""

import random
from collections.abc import Sequence

from flipsearch.core.records import Context
from flipsearch.core.studies import Parent
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.breeder import Breeder
from flipsearch.searching.filters import ContextFilter
from flipsearch.searching.proposer import Proposer
from flipsearch.searching.screening import Screen, ScreenPrediction
from flipsearch.searching.setup import SearchSetup

CHECK_SHARE = 0.25
"""Share of a screened cohort that races whatever the screen predicts: else it is only checked on what it likes."""


class Proposals:
    """Proposes contexts that were not proposed before; its proposer and its breeder learn from their results."""

    def __init__(self, setup: SearchSetup, runner: Runner, base: SplitBaseline, screen: Screen) -> None:
        config, prompts = setup.config, [prompt.text for prompt in base.prompts]
        self._filter = ContextFilter(prompts, runner.backend.count_tokens, config.max_context_tokens)
        self.proposer = Proposer(setup.space, config.seed)
        self.breeder = Breeder(setup.operators, self._filter, config.seed)
        self._screen, self._config = screen, config
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
                violation = prediction.over_refusal_rate - self._config.max_over_refusal
                self.proposer.tell(prediction.context, prediction.flip_rate, violation)
                self._passed_over.append(prediction)
        return chosen + unprobed[:left]

    def _promise(self, prediction: ScreenPrediction) -> tuple[float, float, int]:
        """Within the cap first, then by expected flip rate; the shorter of two equal ones."""
        excess = max(0.0, prediction.over_refusal_rate - self._config.max_over_refusal)
        return excess, -prediction.flip_rate, len(prediction.context.text)
