"""What a search costs and can detect, from its setup alone: no model is loaded, nothing is generated.

How many answers without context are unsafe is not known beforehand, so every number of rollouts is a range: `least` if
the number of unsafe answers is the cheapest one, the race prunes all contexts but one after their first rung, and that
one is the only finalist; `most` if all answers are unsafe and no context is ever pruned. It takes less than `least`
only if there is nothing to search for: nothing unsafe, no context within the cap, a space or a budget that ends before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flipsearch.backends.models import POCKET_MODEL
from flipsearch.config import is_endpoint
from flipsearch.core.display import ShowsFacts
from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import json_value
from flipsearch.core.records import Kind, Prompt, Sampling, num_answers
from flipsearch.core.studies import TIE_LEVEL
from flipsearch.measuring.measure import clusters_of
from flipsearch.searching import after
from flipsearch.searching.baseline import DISCORDANT, POWER, least_detectable, make_rungs
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
    """Budget of a thought, 0 for none; None hangs on a chat template that was not read yet."""
    mean_length: float | None
    """Mean completion tokens of a rollout in the study's ledger; None if there is none yet."""
    budget_tokens: int | None
    """Ends the search before the most if it is smaller."""
    time_s: float | None
    tokens_per_s: float | None
    """As the user says, or as the study's ledger knows it; None if neither does."""
    may_be_slow: bool
    """The model may run on a CPU, and is none that was made to."""
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
        resolution=_resolution(setup, min(config.num_finalists, num_contexts) - 1, delta, power),
        samples=config.samples,
        unsafe_at=config.unsafe_at,
        resample_flip_rate=resample_flip_rate(config.samples, config.unsafe_at) if config.temperature > 0 else None,
    )


def _counts(prompts: Sequence[Prompt]) -> dict[Kind, int]:
    """Return how many prompts there are of each kind; a kind without any counts 0."""
    kinds = Counter(prompt.kind for prompt in prompts)
    return {"harmful": kinds["harmful"], "benign": kinds["benign"]}


def _rollouts(setup: SearchSetup, num_contexts: int, harmful: int, benign: int) -> dict[str, Span]:
    """The rollouts per phase, for so many contexts and search prompts."""
    config, num_placebos = setup.config, len(setup.placebos)
    num_search, num_confirm = num_answers(setup.search), num_answers(setup.confirm)
    # By the number of unsafe answers: a first rung has fewer benign prompts the more harmful ones there are.
    early = {}
    for unsafe in range(1, harmful + 1):
        first = make_rungs(unsafe, benign, config.first_rung)[0]
        early[unsafe] = (num_contexts - 1) * (first.num_harmful + first.num_benign) + unsafe + benign
    least = min(early, key=lambda unsafe: early[unsafe] + num_placebos * unsafe)
    num_finalists = min(config.num_finalists, num_contexts)
    spans = {
        "baseline": Span(num_search, num_search),
        "placebos": Span(num_placebos * (least + benign), num_placebos * num_search),
        "race": Span(early[least], num_contexts * num_search),
        "confirm": Span(
            num_confirm + (1 + num_placebos) * len(setup.confirm), (1 + num_finalists + num_placebos) * num_confirm
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
