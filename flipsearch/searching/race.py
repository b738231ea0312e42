"""The race: arms go through rungs of prompts, all that still run in one call of the backend a rung.

An arm that stands at a rung can be taken up again later; what it was measured on before is not asked again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, Measurement
from flipsearch.core.studies import TrialState
from flipsearch.measuring.measure import has_failed, measure
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.elimination import hopeless
from flipsearch.searching.report import log_pruned
from flipsearch.searching.rungs import Rung

Trim = Callable[[Sequence["Arm"], Rung], Sequence["Arm"]]
"""(arms that may go on, the rung before them) -> those that do; a budget may hold some back."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A context and how far it came."""

    context: Context
    """What was raced."""
    search: Measurement
    """On the prompts that it has seen."""
    state: TrialState | Literal["running"]
    """"running" until it has seen all prompts or something stops it."""
    rung: int
    """Last rung it finished, from 0."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What an arm must clear to stay in the race."""

    cap: float
    """Highest over-refusal rate."""
    alpha: float
    """Highest probability that the best arm within the cap is cut."""


class Race:
    """All arms of a search, in order of entry."""

    def __init__(self, runner: Runner, base: SplitBaseline, rungs: Sequence[Rung], bar: Bar) -> None:
        self.runner, self.base, self.rungs, self.bar = runner, base, rungs, bar
        self._arms: dict[str, Arm] = {}

    @property
    def arms(self) -> list[Arm]:
        """Every arm that finished a rung."""
        return list(self._arms.values())

    def run(self, contexts: Sequence[Context], rungs: range, label: str, trim: Trim | None = None) -> list[Arm]:
        """Take contexts through some rungs, those that are cut or held back apart; return what became of them."""
        running = list(contexts)
        for index in rungs:
            if trim is not None and running:
                kept = trim([self._arms[context.context_id] for context in running], self.rungs[index])
                running = [arm.context for arm in kept]
            if not running:
                break
            self._run_rung(running, index, label)
            running = [context for context in running if self._arms[context.context_id].state == "running"]
        return [self._arms[context.context_id] for context in contexts]

    def _run_rung(self, running: Sequence[Context], index: int, label: str) -> None:
        runner, base = self.runner, self.base
        runner.enter(Phase.RACE, f"{label}, rung {index + 1}/{len(self.rungs)}")
        prompts = base.to_flip(self.rungs[index])
        cohort = label.removeprefix("cohort ")
        runner.emit("rung", cohort=cohort, rung=index + 1, num_running=len(running), num_prompts=len(prompts))
        measured = measure(runner, running, prompts, base.outcomes, "search")
        ids = {context.context_id for context in running}
        others = [arm.search for id, arm in self._arms.items() if id not in ids and arm.state != "failed"]
        states = self._states(measured, others, is_last=index == len(self.rungs) - 1)
        stopped: list[TrialState] = ["complete" if state == "running" else state for state in states]
        log_pruned(runner, running, measured, stopped, others, self.bar.cap, index + 1)
        for context, one, state in zip(running, measured, states, strict=True):
            self._arms[context.context_id] = Arm(context, one, state, index)

    def _states(
        self, arms: Sequence[Measurement], others: Sequence[Measurement], *, is_last: bool
    ) -> list[TrialState | Literal["running"]]:
        able = [one for one in arms if not has_failed(one)]
        race_on = bool(able) and not is_last
        cuts = iter(hopeless(able, others, self.bar.cap, self.bar.alpha) if race_on else [False] * len(able))
        can_continue: TrialState | Literal["running"] = "complete" if is_last else "running"
        return ["failed" if has_failed(one) else "pruned" if next(cuts) else can_continue for one in arms]
