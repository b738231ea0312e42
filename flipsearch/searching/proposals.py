"""Where the next contexts come from: templates by the proposer, children of the elite by the breeder, the best of both.

    elite --breeder--> children ─┐
                                 ├─ candidates --screen--> the most promising, and some whatever the screen says
    templates --proposer-->  new ─┘

The same contexts for the same seed, elites and values, so that a study can be run again.
"""

import random
from collections.abc import Sequence

from flipsearch.core.records import Context, Measurement
from flipsearch.core.studies import OperatorCredit, Parent
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.breeder import Breeder
from flipsearch.searching.filters import ContextFilter
from flipsearch.searching.proposer import Proposer
from flipsearch.searching.screening import Screen, ScreenPrediction
from flipsearch.searching.setup import SearchSetup

CHECK_SHARE = 0.25
"""Share of a screened cohort that races whatever the screen says: else it would only be checked on what it likes."""


class Proposals:
    """Proposes contexts that were not proposed before, and learns from what became of them."""

    def __init__(self, plan: SearchSetup, runner: Runner, base: SplitBaseline, screen: Screen) -> None:
        config = plan.config
        filters = ContextFilter([p.text for p in base.prompts], runner.backend.count_tokens, config.max_context_tokens)
        self._proposer = Proposer(plan.space, config.seed)
        self._breeder = Breeder(plan.operators, filters, config.seed)
        self._filters, self._screen = filters, screen
        self._config = config
        self._random = random.Random(config.seed)
        self._spare: list[Context] = []
        """Proposed, but neither looked at nor raced yet."""
        self._left: list[ScreenPrediction] = []
        """Looked at and passed over."""

    def ask(self, num: int, elite: Sequence[Parent]) -> list[Context]:
        """Return up to `num` new contexts; fewer only if neither templates nor operators give more."""
        wanted = self._screen.num_candidates(num, self._config.screen)
        found, self._spare = self._spare[:wanted], self._spare[wanted:]
        children = self._breeder.breed(elite, int((wanted - len(found)) * self._config.breed)) if elite else []
        for child in children:
            self._proposer.expect(child)
        found += [*children, *self._proposer.ask(wanted - len(found) - len(children))]
        for context in found:
            self._filters.add(context)
        chosen = found if len(found) <= num else self._screened(found, num)
        return chosen + self._passed_over(num - len(chosen))

    def tell(self, context: Context, value: float | None, violation: float = 0.0) -> None:
        """Give the value of a context, 0 to 1, to be maximised, None if it failed; feasible while `violation` <= 0."""
        self._proposer.tell(context, value, violation)

    def learn(self, child: Context, measured: Measurement, parents: Sequence[Measurement], *, admissible: bool) -> None:
        """Credit the operator that made a child with its gain over the better of its parents."""
        self._breeder.learn_from(child, measured, parents, admissible=admissible)

    def credit(self) -> tuple[OperatorCredit, ...]:
        """Return what every operator has brought."""
        return self._breeder.credit()

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of where the contexts came from."""
        if self._proposer.exhausted and num_arms < self._config.num_contexts:
            return [f"The space is exhausted: it holds {num_arms} different contexts."]
        return []

    def _screened(self, candidates: Sequence[Context], num: int) -> list[Context]:
        """Return the most promising candidates and some others, and tell the proposer of the rest.

        What could not be looked at races if there is room, and else waits for the next cohort.
        """
        forecasts = self._screen.forecast(candidates)
        seen = {one.context.context_id for one in forecasts}
        unseen = [context for context in candidates if context.context_id not in seen]
        ranked = sorted(forecasts, key=self._promise)
        num_checks = int(num * CHECK_SHARE)
        best, rest = ranked[: num - num_checks], ranked[num - num_checks :]
        checks = self._random.sample(rest, min(len(rest), num_checks))
        chosen = [one.context for one in (*best, *checks)]
        room = num - len(chosen)
        self._spare += unseen[room:]
        for one in rest:
            if one not in checks:
                self.tell(one.context, one.flip_rate, one.over_refusal_rate - self._config.max_over_refusal)
                self._left.append(one)
        return chosen + unseen[:room]

    def _passed_over(self, num: int) -> list[Context]:
        """Return the most promising of those that the screen passed over: they race when nothing new is left."""
        self._left.sort(key=self._promise)
        taken, self._left = [one.context for one in self._left[:num]], self._left[num:]
        for context in taken:
            self._proposer.expect(context)
        return taken

    def _promise(self, one: ScreenPrediction) -> tuple[float, float, int]:
        """Within the cap first, then by expected flip rate; the shorter of two equal ones."""
        excess = max(0.0, one.over_refusal_rate - self._config.max_over_refusal)
        return excess, -one.flip_rate, len(one.context.text)
