"""What a search will take and what it can tell, from its plan alone: no model is loaded, nothing is asked.

How many answers without context are unsafe is not known beforehand, so every number of rollouts is a range: `least`
if as few are unsafe as takes least, the race cuts all contexts but one after their first rung, and that one is the only
finalist; `most` if all are unsafe and no context is ever cut. Less than `least` only if there is nothing to search for:
nothing unsafe, no context within the cap, a space or a budget that ends before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Kind, Prompt
from flipsearch.core.studies import TIE_LEVEL
from flipsearch.searching import after
from flipsearch.searching.rungs import make_rungs
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.power import detectable_difference, pairs_needed, redraw_flip_rate

DELTA, POWER, DISCORDANT = 0.05, 0.8, 0.2
"""What is asked of the confirm split if nothing else is said: a difference, its chance to be found, and the share of
the prompts on which exactly one of two contexts flips."""


@dataclass(frozen=True, slots=True)
class Span:
    """From the least to the most."""

    least: int
    """If everything ends as early as it can."""
    most: int
    """If nothing does."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which difference of two flip rates the confirm split can tell (statistics.power)."""

    num_pairs: int
    """Pairs at most: harmful confirm prompts, were all unsafe without context."""
    detectable: float | None
    """The least difference that they find; None if they find none."""
    delta: float
    """The difference that was asked about."""
    num_pairs_needed: int
    """Pairs that find it."""
    power: float
    """With which probability."""
    alpha: float
    """At which level of the test."""
    discordant: float
    """Share of the pairs on which exactly one of the two flips, or `delta` if that is more."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What a search will take and tell."""

    study: str
    """Its name."""
    prompts: Mapping[str, Mapping[Kind, int]]
    """Split -> kind -> prompts."""
    num_contexts: int
    """Contexts that will be proposed, at most."""
    rollouts: Mapping[str, Span]
    """Phase (baseline, placebos, race, confirm, and the stages after the search) -> rollouts."""
    max_tokens: int
    """Most completion tokens of a rollout."""
    mean_length: float | None
    """Mean completion tokens of a rollout in the study's ledger; None if there is none yet."""
    budget_tokens: int | None
    """The token budget, which ends the search before the most if it is smaller."""
    time_s: float | None
    """The time budget."""
    resolution: Resolution
    """What the confirm split can tell."""
    samples: int = 1
    """Samples of each prompt."""
    unsafe_at: int = 1
    """Unsafe draws that make a prompt unsafe."""
    redraw_flip_rate: float | None = None
    """Flip rate that drawing again shows by itself, were p_unsafe uniform over prompts; None for greedy decoding."""

    @property
    def total(self) -> Span:
        """Rollouts of all phases."""
        spans = self.rollouts.values()
        return Span(sum(span.least for span in spans), sum(span.most for span in spans))

    @property
    def tokens_at_most(self) -> int:
        """Completion tokens if every rollout is as long as it may be."""
        return self.total.most * self.max_tokens

    @property
    def tokens_expected(self) -> Span | None:
        """Completion tokens at the mean length so far; None without one."""
        mean, total = self.mean_length, self.total
        return None if mean is None else Span(round(total.least * mean), round(total.most * mean))

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        expected = self.tokens_expected
        return {
            "study": self.study,
            "prompts": {split: dict(kinds) for split, kinds in self.prompts.items()},
            "num_contexts": self.num_contexts,
            "rollouts": {phase: _span(span) for phase, span in self.rollouts.items()} | {"total": _span(self.total)},
            "samples": self.samples,
            "unsafe_at": self.unsafe_at,
            "redraw_flip_rate": self.redraw_flip_rate,
            "max_tokens": self.max_tokens,
            "tokens_at_most": self.tokens_at_most,
            "mean_length": self.mean_length,
            "tokens_expected": _span(expected) if expected else None,
            "budget_tokens": self.budget_tokens,
            "time_s": self.time_s,
            "resolution": {name: getattr(self.resolution, name) for name in Resolution.__slots__},
        }


def forecast(
    plan: SearchSetup, *, mean_length: float | None = None, delta: float = DELTA, power: float = POWER
) -> SearchPlan:
    """Return what a planned search will take and tell; `mean_length` is that of rollouts that are there already.

    Raises ConfigError for a difference or a power that makes no sense.
    """
    config = plan.config
    return SearchPlan(
        study=config.study_name(),
        prompts={"search": Counter(_kinds(plan.search)), "confirm": Counter(_kinds(plan.confirm))},
        num_contexts=plan.num_contexts,
        rollouts=_rollouts(plan),
        max_tokens=config.sampling().max_tokens,
        mean_length=mean_length,
        budget_tokens=config.budget_tokens,
        time_s=config.time_s,
        resolution=_resolution(_kinds(plan.confirm).count("harmful"), delta, power),
        samples=config.samples,
        unsafe_at=config.unsafe_at,
        redraw_flip_rate=redraw_flip_rate(config.samples, config.unsafe_at) if config.temperature > 0 else None,
    )


def _rollouts(plan: SearchSetup) -> dict[str, Span]:
    harmful, benign = (_kinds(plan.search).count(kind) for kind in ("harmful", "benign"))
    num_placebos, num_contexts = len(plan.placebos), plan.num_contexts
    # By the number of unsafe answers: a first rung has fewer benign prompts the more harmful ones there are.
    early = {}
    for unsafe in range(1, harmful + 1):
        first = make_rungs(unsafe, benign, plan.config.first_rung)[0]
        early[unsafe] = (num_contexts - 1) * (first.num_harmful + first.num_benign) + unsafe + benign
    least = min(early, key=lambda unsafe: early[unsafe] + num_placebos * unsafe)
    num_finalists = min(plan.config.num_finalists, num_contexts)
    prompts = {
        "baseline": Span(len(plan.search), len(plan.search)),
        "placebos": Span(num_placebos * (least + benign), num_placebos * (harmful + benign)),
        "race": Span(early[least], num_contexts * (harmful + benign)),
        "confirm": Span((2 + num_placebos) * len(plan.confirm), (1 + num_finalists + num_placebos) * len(plan.confirm)),
    }
    num_samples = plan.config.samples
    spans = {phase: Span(num_samples * span.least, num_samples * span.most) for phase, span in prompts.items()}
    # How long the answers are, and whether benign prompts are refused without a context, is not known beforehand.
    most = {stage.name: stage.cost(plan, None) for stage in after.STAGES}
    return spans | {name: Span(0, cost) for name, cost in most.items() if cost is not None}


def _resolution(num_pairs: int, delta: float, power: float) -> Resolution:
    if not 0 < delta <= 1:
        raise ConfigError(f"delta = {delta}: expected a difference of flip rates above 0 and up to 1.")
    if not TIE_LEVEL < power < 1:
        raise ConfigError(f"power = {power}: expected a probability between {TIE_LEVEL} and 1.")
    discordant = max(DISCORDANT, delta)
    return Resolution(
        num_pairs=num_pairs,
        detectable=detectable_difference(num_pairs, discordant, TIE_LEVEL, power),
        delta=delta,
        num_pairs_needed=pairs_needed(delta, discordant, TIE_LEVEL, power),
        power=power,
        alpha=TIE_LEVEL,
        discordant=discordant,
    )


def _kinds(prompts: tuple[Prompt, ...]) -> list[Kind]:
    return [prompt.kind for prompt in prompts]


def _span(span: Span) -> dict[str, int]:
    return {"least": span.least, "most": span.most}
