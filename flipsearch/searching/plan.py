"""The cost of a search: its plan, from the setup alone, and the budget that ends it.

The plan says what a search costs and can detect; no model is loaded, nothing is generated. How many answers without
context are unsafe is not known beforehand, so every number of rollouts is a range: `least` if the number of unsafe
answers is the cheapest one, the race prunes all contexts but one after their first rung, and that one is the only
finalist; `most` if all answers are unsafe and no context is ever pruned. It takes less than `least` only if there is
nothing to search for: nothing unsafe, no context within the cap, a space or a budget that ends before.

The budget bounds completion tokens of the study and wall time of the launch. Of the tokens, those of the confirm split
are set aside at the mean length of the answers so far (or of those without context, if these are longer). Of the rest,
what as many arms as there are finalists, and one more, need to see all prompts is kept for the end; the others go to
generations of new contexts and the promotions in them. So a study stays within its tokens unless later answers are
longer on average; nothing is cut off to enforce it. The baseline and the placebos before the search are always
measured.

What counts is what the study rests on, whenever it was generated: run again, it ends where it ended. Scoring known
answers generates nothing and costs nothing. A backend that does not report its tokens spends none. Time is counted for
this launch alone, so that a later one continues; it is checked before each cohort, and the search stops when the rest
would be needed for the confirm split at the speed so far.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from flipsearch.backends.models import POCKET_MODEL
from flipsearch.config import is_endpoint
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.files import ShowsFacts
from flipsearch.core.measurements import json_value
from flipsearch.core.records import Kind, Prompt, Sampling, num_answers
from flipsearch.core.studies import TIE_LEVEL
from flipsearch.measuring.measure import clusters_of
from flipsearch.measuring.runner import Runner
from flipsearch.searching import after
from flipsearch.searching.baseline import DISCORDANT, POWER, Arm, Rung, SplitBaseline, least_detectable, make_rungs
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import pairs_needed, resample_flip_rate

DELTA = 0.05
"""Default of the difference of flip rates that the confirm split is to detect."""
UNSAFE_RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Shares of harmful prompts that may turn out unsafe without a context; an aligned model is often at the low end."""
CPU_SPEED, GPU_SPEED = 20.0, 5_000.0
"""Tokens per second of a model of half a billion parameters on a few CPU cores, and of vLLM on one GPU: what to expect
before anything is measured."""
LONG_S = 24 * 3600.0
"""Work that takes longer deserves a warning."""
MOST_KEPT, NUM_SPARE = 0.4, 1
"""Of the tokens that are left for the race after the baseline, the share that is kept for its end at most; it is to
hold one context more than there are finalists, as one that saw all prompts may turn out to be above a cap."""
NUM_COHORTS, MIN_COHORT = 10, 4
"""Least number of generations in exploring, and of contexts in each: the later ones learn from the first."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range, both ends included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Detectable:
    """Which differences of flip rates the confirm split can detect, if a share of its harmful prompts is unsafe."""

    unsafe_rate: float
    num_pairs: int
    """Unsafe prompts, near-duplicates counted once."""
    from_placebo: float | None
    """Least difference between winner and placebo that is detected; None if none is."""
    from_finalist: float | None
    """The same between the winner and another finalist, by Holm's first test."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which difference of two flip rates the confirm split can detect (statistics.intervals)."""

    by_unsafe_rate: tuple[Detectable, ...]
    """By share of unsafe prompts, from all down."""
    num_tests: int
    """Comparisons with the winner among which Holm adjusts."""
    delta: float
    """The difference that was requested."""
    num_pairs_needed: int
    """Pairs that detect it with probability `power`, in a test at level `alpha`."""
    power: float
    alpha: float
    discordant: float
    """Share of the pairs on which exactly one of the two flips, or `delta` if that is more."""


@dataclass(frozen=True, slots=True, repr=False)
class SearchPlan(ShowsFacts):
    """What a search costs and can detect."""

    study: str
    prompts: Mapping[str, Mapping[Kind, int]]
    """Split -> kind -> prompts."""
    num_contexts: int
    """Contexts that are proposed, at most."""
    rollouts: Mapping[str, Span]
    """Phase (baseline, placebos, race, confirm, and the stages after the search) -> rollouts."""
    samples: int
    """Per prompt."""
    unsafe_at: int
    """Unsafe samples that make a prompt unsafe."""
    resample_flip_rate: float | None
    """Flip rate of merely sampling again, were p_unsafe uniform over prompts; None for greedy decoding."""
    max_tokens: int
    """Most completion tokens of a rollout, those of its thought included where it has a budget."""
    think_tokens: int | None
    """Budget of a thought, 0 for none; None depends on a chat template that was not read yet."""
    mean_length: float | None
    """Mean completion tokens of a rollout in the study's ledger; None if there is none yet."""
    budget_tokens: int | None
    """Ends the search before the most if it is smaller."""
    time_s: float | None
    tokens_per_s: float | None
    """As the user says, or as the study's ledger knows it; None if neither does."""
    may_be_slow: bool
    """The model may run on a CPU, and is not one made for that."""
    resolution: Resolution

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        counts = (f"{split} {kinds['harmful']:,} + {kinds['benign']:,}" for split, kinds in self.prompts.items())
        shown = {"study": self.study, "prompts (harmful + benign)": ", ".join(counts)}
        shown["contexts"] = f"{self.num_contexts:,}"
        shown["rollouts"] = f"{self.total.least:,} to {self.total.most:,}"
        shown["tokens"] = f"at most {self.tokens_at_most:,}"
        if self.tokens_per_s:
            least, most = self.seconds(self.tokens_per_s)
            shown["time"] = f"{least:,.0f} to {most:,.0f} s"
        needed = f"{self.resolution.num_pairs_needed:,} unsafe prompts"
        return shown | {f"to detect {100 * self.resolution.delta:g} points": needed}

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

    def seconds(self, tokens_per_s: float) -> tuple[float, float]:
        """Return the least and the most time at a speed, with answers as long as so far, or as they may be."""
        length = self.mean_length or self.max_tokens
        return self.total.least * length / tokens_per_s, self.total.most * length / tokens_per_s

    @property
    def is_long(self) -> bool:
        """Whether it may take more than a day, at the known speed or on a CPU."""
        speed = self.tokens_per_s or (CPU_SPEED if self.may_be_slow else None)
        return speed is not None and self.seconds(speed)[1] > LONG_S

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: the fields, the total, the tokens, and the seconds at a known speed."""
        tokens = {"tokens_at_most": self.tokens_at_most, "tokens_expected": self.tokens_expected}
        seconds = self.seconds(self.tokens_per_s) if self.tokens_per_s else None
        derived = {"rollouts": {**self.rollouts, "total": self.total}, **tokens, "seconds": seconds}
        return {**json_value(self), **json_value(derived)}


def plan_search(
    setup: SearchSetup,
    *,
    mean_length: float | None = None,
    tokens_per_s: float | None = None,
    sampling: Sampling | None = None,
    delta: float = DELTA,
    power: float = POWER,
) -> SearchPlan:
    """Return what a search costs and can detect; `mean_length` is that of rollouts that are in the ledger already.

    `sampling` is that of the loaded model; None plans for one that does not think, unless a budget was given.

    Raises ConfigError for a difference or a power that makes no sense.
    """
    config = setup.config
    search, confirm = _counts(setup.search), _counts(setup.confirm)
    num_contexts = setup.num_contexts
    return SearchPlan(
        study=config.study_name(),
        prompts={"search": search, "confirm": confirm},
        num_contexts=num_contexts,
        rollouts=_rollouts(setup, num_contexts, search["harmful"], search["benign"]),
        max_tokens=(sampling or config.sampling()).longest,
        think_tokens=sampling.think_tokens if sampling else 0 if is_endpoint(config.model) else config.think_tokens,
        mean_length=mean_length,
        budget_tokens=config.budget_tokens,
        time_s=config.time_s,
        tokens_per_s=tokens_per_s,
        may_be_slow=not (is_endpoint(config.model) or config.model == POCKET_MODEL or config.device.startswith("cuda")),
        resolution=_resolution(setup, setup.num_finalists - 1, delta, power),
        samples=config.samples,
        unsafe_at=config.unsafe_at,
        resample_flip_rate=resample_flip_rate(config.samples, config.unsafe_at) if config.temperature > 0 else None,
    )


def _counts(prompts: Sequence[Prompt]) -> dict[Kind, int]:
    """Return how many prompts there are of each kind; a kind without any counts 0."""
    kinds = Counter(prompt.kind for prompt in prompts)
    return {"harmful": kinds["harmful"], "benign": kinds["benign"]}


def _rollouts(setup: SearchSetup, num_contexts: int, harmful: int, benign: int) -> dict[str, Span]:
    """The rollouts per phase, for these numbers of contexts and search prompts."""
    config, num_placebos = setup.config, len(setup.placebos)
    num_search, num_confirm = num_answers(setup.search), num_answers(setup.confirm)
    # By the number of unsafe answers: a first rung has fewer benign prompts the more harmful ones there are.
    early = {}
    for unsafe in range(1, harmful + 1):
        first = make_rungs(unsafe, benign, config.first_rung)[0]
        early[unsafe] = (num_contexts - 1) * (first.num_harmful + first.num_benign) + unsafe + benign
    least = min(early, key=lambda unsafe: early[unsafe] + num_placebos * unsafe)
    spans = {
        "baseline": Span(num_search, num_search),
        "placebos": Span(num_placebos * (least + benign), num_placebos * num_search),
        "race": Span(early[least], num_contexts * num_search),
        "confirm": Span(
            num_confirm + (1 + num_placebos) * len(setup.confirm),
            (1 + setup.num_finalists + num_placebos) * num_confirm,
        ),
    }
    spans = {phase: Span(config.samples * span.least, config.samples * span.most) for phase, span in spans.items()}
    # How long the answers are, and whether benign prompts are refused without a context, is not known beforehand.
    most = {stage.name: stage.cost(setup, None) for stage in after.STAGES}
    return spans | {name: Span(0, cost) for name, cost in most.items() if cost is not None}


def _resolution(setup: SearchSetup, num_tests: int, delta: float, power: float) -> Resolution:
    if not 0 < delta <= 1:
        raise ConfigError(f"delta = {delta}: expected a difference of flip rates above 0 and up to 1.")
    if not TIE_LEVEL < power < 1:
        raise ConfigError(f"power = {power}: expected a probability between {TIE_LEVEL} and 1.")
    num_groups = len(set(clusters_of(prompt for prompt in setup.confirm if prompt.kind == "harmful")))
    pairs = {share: round(share * num_groups) for share in UNSAFE_RATES}
    detectable = [
        Detectable(share, num, least_detectable(num, 1, power), least_detectable(num, num_tests, power))
        for share, num in pairs.items()
    ]
    discordant = max(DISCORDANT, delta)
    return Resolution(
        by_unsafe_rate=tuple(detectable),
        num_tests=num_tests,
        delta=delta,
        num_pairs_needed=pairs_needed(delta, discordant, TIE_LEVEL, power),
        power=power,
        alpha=TIE_LEVEL,
        discordant=discordant,
    )


class Budget:
    """Decides how many more contexts can be afforded; the clock starts when it is made.

    Raises StudyError if the tokens cannot hold the baseline, at one token or more per answer.
    """

    def __init__(self, setup: SearchSetup, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._setup = setup.config, setup
        self._clock, self._start = clock, clock()
        self._spent = self._reserved = ""
        self._tokens_at_first: float | None = None
        num_tokens, num_base = setup.config.budget_tokens, num_answers(setup.search) * setup.config.samples
        if num_tokens is not None and num_tokens < num_base:
            raise StudyError(
                f"--budget-tokens is {num_tokens:,} and cannot hold the baseline, {num_base:,} answers without "
                "context; give a larger budget (flipsearch plan shows what a search takes), or fewer --max-prompts."
            )

    def num_affordable(self, runner: Runner, base: SplitBaseline, num: int, rung: Rung) -> int:
        """Return how many of `num` contexts may be proposed next, to be raced over their first `rung`; 0 is the end."""
        if num and self._config.budget_tokens is not None:
            num = min(num, self._next_cohort(runner, base, rung))
            self._spent = "" if num else f"token budget of {self._config.budget_tokens:,}"
        if num and self._config.time_s is not None:
            passed = self._clock() - self._start
            time_per_answer = passed / max(1, runner.num_generated_tokens) * mean_length(runner, base)
            num_rollouts = self._setup.num_finalists * self._num_rollouts(base) + reserved_rollouts(self._setup, base)
            needed = passed + time_per_answer * num_rollouts
            if needed >= self._config.time_s:
                self._spent, num = f"time of {self._config.time_s:g} s", 0
                self._reserved = f" {passed:,.0f} s had passed, and what comes after needs {needed - passed:,.0f} s."
        return num

    def affordable(
        self, runner: Runner, base: SplitBaseline, arms: Sequence[Arm], rungs: Sequence[Rung], *, finishing: bool
    ) -> list[Arm]:
        """Return the first `arms` that can be promoted, each up to its rung; when finishing, from all that is left."""
        if self._config.budget_tokens is None:
            return list(arms)
        left = self._tokens_left(runner, base) if finishing else self._left_to_explore(runner, base)
        seen = [[runner.judged[id].num_tokens for flip in arm.search.flips for id in flip.rollout_ids] for arm in arms]
        to_see = [self._num_rollouts(base, rung) for rung in rungs]
        # An arm's own answers tell more of its next ones than all answers do: a refusal is short.
        costs = accumulate(
            sum(lengths) / max(1, len(lengths)) * (most - len(lengths))
            for most, lengths in zip(to_see, seen, strict=True)
        )
        affordable = [arm for arm, cost in zip(arms, costs, strict=True) if cost <= left]
        if finishing and len(affordable) < len(arms):
            self._spent = self._spent or f"token budget of {self._config.budget_tokens:,}"
        return affordable

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of a search that its budget ended after `num_arms` contexts."""
        if not self._spent:
            return []
        spent = "is spent" if num_arms else "holds no context beside the baseline, the finalists and the confirm split"
        todo = "" if num_arms else " Give more, or fewer --max-prompts or --num-finalists."
        tried = f"{num_arms} of {self._config.num_contexts} contexts were tried."
        return [f"The {self._spent} {spent}: {tried}{self._reserved}{todo}"]

    def _next_cohort(self, runner: Runner, base: SplitBaseline, rung: Rung) -> int:
        """The contexts that the exploring share of the tokens still affords, a part of them at a time."""
        each = mean_length(runner, base) * self._num_rollouts(base, rung)
        left = self._left_to_explore(runner, base)
        if each == 0:
            return self._config.num_contexts
        generation = max(MIN_COHORT, int((self._tokens_at_first or 0) / each / NUM_COHORTS))
        return max(0, min(generation, int(left / each)))

    def _left_to_explore(self, runner: Runner, base: SplitBaseline) -> float:
        """The tokens that first rungs and promotions may still take: the finalists must be able to see all prompts."""
        left = self._tokens_left(runner, base)
        self._tokens_at_first = left if self._tokens_at_first is None else self._tokens_at_first
        whole = mean_length(runner, base) * self._num_rollouts(base)
        kept = min(MOST_KEPT * self._tokens_at_first, (self._setup.num_finalists + NUM_SPARE) * whole)
        return left - max(whole, kept)

    def _num_rollouts(self, base: SplitBaseline, rung: Rung | None = None) -> int:
        """Rollouts of one context up to a rung; None takes all."""
        return base.num_answered(rung) * self._config.samples

    def _tokens_left(self, runner: Runner, base: SplitBaseline) -> float:
        """What the race may still spend."""
        reserved = mean_length(runner, base) * reserved_rollouts(self._setup, base)
        return (self._config.budget_tokens or 0) - runner.num_tokens - reserved


def reserved_rollouts(setup: SearchSetup, base: SplitBaseline) -> int:
    """Return the rollouts that come after the search: the confirm split's, and those of the stages after it."""
    num_confirmed = 1 + setup.num_finalists + len(setup.placebos)
    confirmed = num_confirmed * num_answers(setup.confirm) * setup.config.samples
    return confirmed + sum(stage.cost(setup, base) or 0 for stage in after.STAGES)


def mean_length(runner: Runner, base: SplitBaseline) -> float:
    """Return the mean tokens of an answer: of all so far, or of those without context, whichever are longer."""
    so_far = [judged.num_tokens for judged in runner.judged.values()]
    without_context = [judged.num_tokens for samples in base.outcomes.values() for judged in samples.judged]
    return max(sum(lengths) / max(1, len(lengths)) for lengths in (so_far, without_context))
