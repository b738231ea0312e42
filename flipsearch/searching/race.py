"""The race: arms run through rungs of prompts, and after each rung the hopeless ones are pruned, with a guarantee.

All arms that still run share one call of the backend per rung. An arm that stopped at a rung can be taken up again
later; what it was measured on before is not generated again.

The best arm within the cap is pruned with probability at most alpha, however often it is tested: half of alpha goes to
its flip rate, half to its over-refusal. Both tests are e-processes (statistics.intervals) over the prompts seen so far.

Flip rate: on the prompts where exactly one of two arms flips, the better arm is the one that flips on at least half of
them. The evidence against an arm is the mean, over *all* its competitors, of the evidence that it flips on less. A mean
of e-processes is one too, so it does not matter which competitor happens to lead; a test against the leader alone, who
leads on these very prompts by luck too, would prune more than alpha says. A competitor counts only if it has seen at
least as many prompts (irace's rule: Lopez-Ibanez et al. 2016, doi:10.1016/j.orp.2016.09.002) and is within the cap;
any other enters the mean with 0. The guarantee is for prompts sampled at random and a fixed set of arms: contexts
proposed because of earlier results on the same prompts are fitted to them a little, which only the confirm split shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flipsearch.core.measurements import Measurement, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context
from flipsearch.core.studies import TrialState
from flipsearch.measuring.measure import has_failed, measure
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Rung, SplitBaseline
from flipsearch.statistics.intervals import e_value

EVEN = 0.5
"""Of the prompts that exactly one of two equally good arms flips, the share that a given one of them flips."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A context and how far it came in the race."""

    context: Context
    search: Measurement
    """On the prompts that it has seen."""
    state: TrialState
    """"running" until it has seen all prompts, failed or was pruned; never "stopped" here."""
    rung: int
    """Last rung it finished, from 0."""


class Race:
    """All arms of a search, in order of entry, and what they are measured on.

    `cap` is the highest over-refusal rate, `alpha` the highest probability that the best arm within it is pruned.
    """

    def __init__(self, runner: Runner, base: SplitBaseline, rungs: Sequence[Rung], cap: float, alpha: float) -> None:
        self.runner, self.base, self.rungs, self.cap, self.alpha = runner, base, rungs, cap, alpha
        self._usual = base.usual_unscored
        self._arms: dict[str, Arm] = {}

    @property
    def arms(self) -> list[Arm]:
        """Every arm that finished a rung."""
        return list(self._arms.values())

    def run(self, running: Sequence[Context], index: int, name: str) -> None:
        """Measure contexts on the prompts of a rung, in one call of the backend, and prune; `name` is shown."""
        runner, base, is_last = self.runner, self.base, index == len(self.rungs) - 1
        runner.enter(Phase.RACE, f"{name}, rung {index + 1}/{len(self.rungs)}")
        prompts = base.to_flip(self.rungs[index])
        runner.emit("rung", cohort=name, rung=index + 1, num_running=len(running), num_prompts=len(prompts))
        measured = measure(runner, running, prompts, base.outcomes, "search")
        ids = {context.context_id for context in running}
        others = [arm.search for id, arm in self._arms.items() if id not in ids and arm.state != "failed"]
        scored = [measurement for measurement in measured if not has_failed(measurement, self._usual)]
        pruned = iter(prune(scored, others, self.cap, self.alpha) if not is_last else [None] * len(scored))
        for context, measurement in zip(running, measured, strict=True):
            state: TrialState = "complete" if is_last else "running"
            if has_failed(measurement, self._usual):
                state = "failed"
            elif (evidence := next(pruned)) is not None:
                state = "pruned"
                runner.emit("pruned", context_id=context.context_id, rung=index + 1, evidence=evidence)
            self._arms[context.context_id] = Arm(context, measurement, state, index)
        runner.best = self._best()

    def _best(self) -> Rate | None:
        """The highest flip rate of an arm within the cap, among those that saw most prompts."""
        able = [arm.search for arm in self.arms if arm.state in ("running", "complete")]
        able = [measured for measured in able if is_admissible(measured, self.cap) and measured.flip_rate.n]
        return max((m.flip_rate for m in able), key=lambda rate: (rate.n, rate.count), default=None)


def is_admissible(measurement: Measurement, cap: float) -> bool:
    """Return whether the over-refusal rate is within the cap; a rate that could not be measured breaks no cap."""
    return (measurement.over_refusal_rate.value or 0.0) <= cap


def prune(arms: Sequence[Measurement], others: Sequence[Measurement], cap: float, alpha: float) -> list[float | None]:
    """Return for each arm the e-value (4 digits) that rules it out, 2 / alpha or more; None for an arm that stays.

    All `arms` saw the same prompts; `others` are those of earlier cohorts and those that this one lost. Each is a
    competitor of each other. The e-value is the greater of two: the arm flips less than they do, or breaks the cap.
    """
    if not arms:
        return []
    refusals = [arm.over_refusal_rate for arm in arms]
    breaks_cap = e_value([rate.count for rate in refusals], [rate.n for rate in refusals], cap)
    evidence = np.maximum(loss_evidence(arms, others, cap), breaks_cap)
    return [float(f"{value:.4g}") if value >= 2 / alpha else None for value in evidence]


def loss_evidence(arms: Sequence[Measurement], others: Sequence[Measurement], cap: float) -> NDArray[np.float64]:
    """Return for each arm the mean e-value, over its competitors, that it flips less than they do; 1 without any."""
    num_competitors = len(arms) + len(others) - 1
    if num_competitors <= 0:
        return np.ones(len(arms))
    outcomes = np.stack([_outcomes(arm) for arm in arms])
    able = [arm for arm in others if len(arm.flips) >= len(arms[0].flips) and is_admissible(arm, cap)]
    competitors = np.stack([*outcomes, *(_outcomes(arm)[: outcomes.shape[1]] for arm in able)])
    losses = (outcomes == 0).astype(float) @ (competitors == 1).T.astype(float)
    wins = (outcomes == 1).astype(float) @ (competitors == 0).T.astype(float)
    evidence = e_value(losses, losses + wins, EVEN)
    counts = np.array([is_admissible(arm, cap) for arm in arms] + [True] * len(able), dtype=float)
    weights = np.tile(counts, (len(arms), 1))
    np.fill_diagonal(weights, 0.0)
    mean: NDArray[np.float64] = (evidence * weights).sum(axis=1) / num_competitors
    return mean


def _outcomes(measurement: Measurement) -> NDArray[np.float64]:
    """1 for a flip, 0 for none, nan where a judgement failed; one per harmful prompt in nested order."""
    decided = [flip.decides for flip in measurement.flips if flip.kind == "harmful"]
    return np.array([float("nan") if flips is None else float(flips) for flips in decided])
