"""What the model does without a context on one split, and what a context can still gain there.

    prompts --no context--> SplitBaseline --to_flip--> unsafe and benign prompts, in nested rungs
                                          --placebos--> num_left, the headroom

The headroom is checked after the placebos that need no winner, before any context is proposed. Decoded greedily, the
empty placebo is the baseline itself and flips nothing; with sampling it samples again, and may flip most of what there
is to flip. The net flip rate is tested on prompts that exactly one of context and placebo flips (McNemar), so if few
are left, not even a context that flips all of them can be distinguished from the placebo.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flipsearch.core.errors import NothingToFlipError
from flipsearch.core.measurements import Endings, Rate
from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Prompt, Scope
from flipsearch.core.studies import TIE_LEVEL, Trial
from flipsearch.measuring.measure import (
    MAX_UNSCORED_RATE,
    Baseline,
    ending_rates,
    refusal_rate,
    strongest_placebo,
    unsafe_rate,
)
from flipsearch.measuring.runner import Runner
from flipsearch.statistics.intervals import mcnemar_mid_p

GROWTH = 2
LAST_STEP = 0.75
"""A rung with more than this share of all prompts is left out: the last few are not worth a batch of their own."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How many prompts an arm has seen when it has finished this rung."""

    num_harmful: int
    """Of the prompts that are unsafe without a context."""
    num_benign: int


def make_rungs(num_harmful: int, num_benign: int, first: int) -> list[Rung]:
    """Return rungs of first, 2 x first, 4 x first, ..., all harmful prompts, with benign ones in proportion."""
    sizes = []
    size = first
    while size <= LAST_STEP * num_harmful:
        sizes.append(size)
        size *= GROWTH
    # Rounded up: no rung may be without benign prompts while there are any.
    return [Rung(size, -(-size * num_benign // num_harmful)) for size in [*sizes, num_harmful]]


@dataclass(frozen=True, slots=True)
class SplitBaseline:
    """The prompts of one split with their answers without a context."""

    split: Scope
    prompts: tuple[Prompt, ...]
    """All of the split, in nested order."""
    outcomes: Baseline
    """Prompt id -> its samples."""

    @property
    def num_unsafe(self) -> int:
        """Harmful prompts that are unsafe without a context."""
        return self.unsafe_rate.count

    @property
    def num_benign(self) -> int:
        """Benign prompts."""
        return sum(prompt.kind == "benign" for prompt in self.prompts)

    @property
    def unsafe_rate(self) -> Rate:
        """Unsafe / scored harmful prompts."""
        return unsafe_rate(self.outcomes[p.prompt_id].label for p in self.prompts if p.kind == "harmful")

    @property
    def over_refusal_rate(self) -> Rate:
        """Refused / scored benign prompts."""
        return refusal_rate(self.outcomes[p.prompt_id].refused for p in self.prompts if p.kind == "benign")

    @property
    def endings(self) -> Endings:
        """How the answers ended, scored or not."""
        return ending_rates(samples.endings for samples in self.outcomes.values())

    @property
    def unscored(self) -> list[Prompt]:
        """Harmful prompts whose baseline is unscored."""
        harmful = [prompt for prompt in self.prompts if prompt.kind == "harmful"]
        return [prompt for prompt in harmful if self.outcomes[prompt.prompt_id].label is Label.UNSCORED]

    def to_flip(self, rung: Rung | None = None) -> list[Prompt]:
        """Return the unsafe and the benign prompts in nested order, up to `rung`; None takes all."""
        left = {"harmful": rung.num_harmful, "benign": rung.num_benign} if rung else {}
        taken: list[Prompt] = []
        for prompt in self.prompts:
            if prompt.kind == "harmful" and self.outcomes[prompt.prompt_id].label is not Label.UNSAFE:
                continue
            if left.get(prompt.kind, 1) > 0:
                taken.append(prompt)
                if left:
                    left[prompt.kind] -= 1
        return taken


def measure_baseline(runner: Runner, prompts: Sequence[Prompt], split: Scope) -> SplitBaseline:
    """Generate and judge the answers to every prompt without a context."""
    runner.enter(Phase.CONFIRM_BASELINE if split == "confirm" else Phase.BASELINE)
    return SplitBaseline(split, tuple(prompts), runner.baseline(prompts))


def require_unsafe(runner: Runner, base: SplitBaseline) -> None:
    """Raise NothingToFlipError, in one line, unless some harmful prompt is unsafe without a context."""
    if base.num_unsafe:
        return
    num_scored = base.unsafe_rate.n
    why = f" {_why_unscored(runner, base)}" if base.unscored else ""
    if num_scored == 0:
        raise NothingToFlipError(
            f"nothing can be measured: none of the answers to the {len(base.unscored)} harmful {base.split} prompts "
            f"could be scored.{why}"
        )
    coverage = f"{num_scored + len(base.unscored)} harmful {base.split} prompts, {num_scored} scored"
    raise NothingToFlipError(
        f"nothing to flip: none of the model's answers without context is unsafe ({coverage}).{why} "
        "Give harder prompts, or a model that is less safe."
    )


def coverage_notes(runner: Runner, base: SplitBaseline) -> list[str]:
    """Return a warning for the reader if too much of a baseline could not be scored."""
    num_harmful = base.unsafe_rate.n + len(base.unscored)
    if len(base.unscored) <= MAX_UNSCORED_RATE * num_harmful:
        return []
    share = f"{len(base.unscored)} of {num_harmful}"
    return [f"Poor coverage: {share} harmful {base.split} baselines are unscored. {_why_unscored(runner, base)}"]


def ending_notes(runner: Runner, base: SplitBaseline) -> list[str]:
    """Return how many answers of a baseline were cut, and what became of their thoughts where a budget closes them."""
    endings, sampling, notes = base.endings, runner.sampling, list[str]()
    answers = f"{'' if base.split == 'all' else base.split + ' '}answers without context"
    if endings.cut.count:
        notes.append(
            f"{endings.cut.count} of {endings.cut.n} {answers} were cut at "
            f"{sampling.max_tokens:,} tokens, scored or not: a larger --max-tokens shows more of them."
        )
    if endings.thought.count and (sampling.think_tokens or endings.leaks.count):
        closed = f", {endings.forced.count} closed by the budget of {sampling.think_tokens:,} tokens"
        notes.append(
            f"{endings.thought.count} of {endings.thought.n} {answers} have a thought"
            f"{closed if sampling.think_tokens else ''}; in {endings.leaks.count} it goes on in the answer."
        )
    return notes


def _why_unscored(runner: Runner, base: SplitBaseline) -> str:
    outcomes = [outcome for prompt in base.unscored for outcome in base.outcomes[prompt.prompt_id].unscored]
    reasons = Counter(outcome.verdict.reason or "no reason given" for outcome in outcomes)
    reason, count = reasons.most_common(1)[0]
    rollouts = runner.ledger.rollouts((outcome.rollout_id for outcome in outcomes), errors=True)
    num_cut = sum(rollout.finish_reason == "length" for rollout in rollouts.values())
    longer = "raise max_tokens" if runner.sampling.think_tokens else "raise max_tokens, or give --think-tokens"
    longer = longer if any(outcome.endings.num_thoughts for outcome in outcomes) else "raise max_tokens"
    hint = f" {num_cut} were cut at {runner.sampling.max_tokens} tokens: {longer}." if num_cut else ""
    return f"Unscored most often: {' '.join(reason.split())[:120]} ({count}).{hint}"


def num_left(base: SplitBaseline, placebos: Sequence[Trial]) -> int:
    """Return how many unsafe prompts the strongest placebo does not flip; all if no placebo could be scored."""
    strongest = strongest_placebo(trial.search for trial in placebos)
    flips = strongest.flips if strongest else ()
    return base.num_unsafe - sum(flip.flipped for flip in flips if flip.before is Label.UNSAFE)


def require_headroom(num_unsafe: int, left: int) -> list[str]:
    """Return a warning for the reader if few of the unsafe prompts are `left`; NothingToFlipError if none is."""
    if left == 0:
        raise NothingToFlipError(
            f"nothing left to gain: a placebo without safety content flips all {num_unsafe} search prompts that are "
            "unsafe without context, so no context can do better. Give harder prompts, or more --samples."
        )
    p_value = mcnemar_mid_p(left, 0)  # of a context that flips all that are left and loses none
    if p_value < TIE_LEVEL:
        return []
    return [
        f"Little is left to gain: of {num_unsafe} unsafe search prompts the strongest placebo before the search leaves "
        f"{left}. On so many prompts even a context that flips all {left} could not be distinguished from it (exact "
        f"McNemar, p = {p_value:.3f}, needed below {TIE_LEVEL:g}): give more or harder prompts."
    ]


def counts(rate: Rate) -> dict[str, Any]:
    """Return count, n and rate, as events and Optuna's attributes hold them."""
    return {"count": rate.count, "n": rate.n, "rate": rate.value}
