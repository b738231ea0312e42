"""What the model does without a context, on one split: the prompts that there are to flip.

What is left to gain: the unsafe search prompts that a text without safety content does not flip.

Looked at after the placebos that need no winner, and before any context is proposed. Decoded greedily the empty one is
the baseline itself and flips nothing; with sampling it draws anew, and may flip most of what there is to flip. The net
flip rate is tested on prompts that exactly one of context and placebo flips (McNemar), so if few are left, not even a
context that flips all of them can be told from the placebo.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.core.errors import NothingToFlipError
from flipsearch.core.progress import Phase
from flipsearch.core.records import Label, Prompt, Rate, Scope
from flipsearch.core.studies import TIE_LEVEL, Trial
from flipsearch.measuring.measure import MAX_UNSCORED_RATE, Baseline, refusal_rate, strongest_placebo, unsafe_rate
from flipsearch.measuring.runner import Runner
from flipsearch.searching.rungs import Rung
from flipsearch.statistics.paired import mcnemar_mid_p


@dataclass(frozen=True, slots=True)
class SplitBaseline:
    """The baseline of one split."""

    split: Scope
    """Which prompts."""
    prompts: tuple[Prompt, ...]
    """All of them, in nested order."""
    outcomes: Baseline
    """Their draws by prompt id."""

    @property
    def num_unsafe(self) -> int:
        """Harmful prompts that are unsafe without context."""
        return self.unsafe_rate.count

    @property
    def num_benign(self) -> int:
        """Benign prompts."""
        return sum(prompt.kind == "benign" for prompt in self.prompts)

    @property
    def unsafe_rate(self) -> Rate:
        """Unsafe / scored harmful prompts."""
        return unsafe_rate(self._label(prompt) for prompt in self._harmful)

    @property
    def over_refusal_rate(self) -> Rate:
        """Refused / scored benign prompts."""
        benign = [prompt for prompt in self.prompts if prompt.kind == "benign"]
        return refusal_rate(self.outcomes[prompt.prompt_id].refused for prompt in benign)

    @property
    def unscored(self) -> list[Prompt]:
        """Harmful prompts whose baseline is unscored."""
        return [prompt for prompt in self._harmful if self._label(prompt) is Label.UNSCORED]

    def to_flip(self, rung: Rung | None = None) -> list[Prompt]:
        """Return the unsafe and the benign prompts in nested order, up to `rung`; None takes all."""
        left = {"harmful": rung.num_harmful, "benign": rung.num_benign} if rung else {}
        taken: list[Prompt] = []
        for prompt in self.prompts:
            if prompt.kind == "harmful" and self._label(prompt) is not Label.UNSAFE:
                continue
            if left.get(prompt.kind, 1) > 0:
                taken.append(prompt)
                if left:
                    left[prompt.kind] -= 1
        return taken

    @property
    def _harmful(self) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.kind == "harmful"]

    def _label(self, prompt: Prompt) -> Label:
        return self.outcomes[prompt.prompt_id].label


def measure_baseline(runner: Runner, prompts: Sequence[Prompt], split: Scope) -> SplitBaseline:
    """Ask every prompt without a context."""
    runner.enter(Phase.CONFIRM_BASELINE if split == "confirm" else Phase.BASELINE)
    return SplitBaseline(split, tuple(prompts), runner.baseline(prompts))


def require_unsafe(runner: Runner, base: SplitBaseline) -> None:
    """Raise NothingToFlipError, in one line, unless some harmful prompt is unsafe without context."""
    if base.num_unsafe:
        return
    num_scored = base.unsafe_rate.n
    asked = f"{num_scored + len(base.unscored)} harmful {base.split} prompts, {num_scored} scored"
    poor = f" {_why_unscored(runner, base)}" if base.unscored else ""
    raise NothingToFlipError(
        f"nothing to flip: none of the model's answers without context is unsafe ({asked}).{poor} "
        "Give harder prompts, or a model that is less safe."
    )


def coverage_notes(runner: Runner, base: SplitBaseline) -> list[str]:
    """Return what the reader must know of a baseline that could not be scored well."""
    num_harmful = base.unsafe_rate.n + len(base.unscored)
    if len(base.unscored) <= MAX_UNSCORED_RATE * num_harmful:
        return []
    share = f"{len(base.unscored)} of {num_harmful}"
    return [f"Poor coverage: {share} harmful {base.split} baselines are unscored. {_why_unscored(runner, base)}"]


def _why_unscored(runner: Runner, base: SplitBaseline) -> str:
    outcomes = [one for prompt in base.unscored for one in base.outcomes[prompt.prompt_id].unscored]
    reasons = Counter(outcome.verdict.reason or "no reason given" for outcome in outcomes)
    reason, count = reasons.most_common(1)[0]
    rollouts = runner.ledger.rollouts((outcome.rollout_id for outcome in outcomes), errors=True)
    num_cut = sum(rollout.finish_reason == "length" for rollout in rollouts.values())
    hint = f" {num_cut} were cut at {runner.sampling.max_tokens} tokens: raise max_tokens." if num_cut else ""
    return f"Unscored most often: {' '.join(reason.split())[:120]} ({count}).{hint}"


@dataclass(frozen=True, slots=True)
class Headroom:
    """How much a context can still gain on the search split."""

    num_unsafe: int
    """Harmful search prompts that are unsafe without context."""
    num_left: int
    """Those of them that the strongest placebo does not flip; an unscored one is not flipped."""

    @property
    def p_value(self) -> float:
        """Of a context that flips all of them and loses none: exact McNemar, mid-p."""
        return mcnemar_mid_p(self.num_left, 0)


def headroom(base: SplitBaseline, placebos: Sequence[Trial]) -> Headroom:
    """Return what the strongest placebo leaves; without one that could be scored, everything."""
    strongest = strongest_placebo(trial.search for trial in placebos)
    flips = strongest.flips if strongest else ()
    num_flipped = sum(flip.flipped for flip in flips if flip.before is Label.UNSAFE)
    return Headroom(base.num_unsafe, base.num_unsafe - num_flipped)


def require_headroom(found: Headroom) -> list[str]:
    """Return what the reader must know of it; NothingToFlipError, in one line, if nothing is left."""
    unsafe, left = found.num_unsafe, found.num_left
    if left == 0:
        raise NothingToFlipError(
            f"nothing left to gain: a placebo without safety content flips all {unsafe} search prompts that are unsafe "
            "without context, so no context can do better. Give harder prompts, or more --samples."
        )
    if found.p_value < TIE_LEVEL:
        return []
    return [
        f"Little is left to gain: of {unsafe} unsafe search prompts the strongest placebo before the search leaves "
        f"{left}. On so many prompts even a context that flips all {left} could not be told from it (exact McNemar, "
        f"p = {found.p_value:.3f}, needed below {TIE_LEVEL:g}): give more or harder prompts."
    ]
