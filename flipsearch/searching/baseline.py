"""What the model does without a context, on one split: the prompts that there are to flip."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.bench import Bench
from flipsearch.errors import NothingToFlipError
from flipsearch.measure import MAX_UNSCORED_RATE, Baseline, refusal_rate, unsafe_rate
from flipsearch.records import Label, Prompt, Rate, Scope
from flipsearch.searching.racing import Rung


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


def measure_baseline(bench: Bench, prompts: Sequence[Prompt], split: Scope) -> SplitBaseline:
    """Ask every prompt without a context."""
    bench.phase = f"baseline ({split})"
    return SplitBaseline(split, tuple(prompts), bench.baseline(prompts))


def require_unsafe(bench: Bench, base: SplitBaseline) -> None:
    """Raise NothingToFlipError, in one line, unless some harmful prompt is unsafe without context."""
    if base.num_unsafe:
        return
    num_scored = base.unsafe_rate.n
    asked = f"{num_scored + len(base.unscored)} harmful {base.split} prompts, {num_scored} scored"
    poor = f" {_why_unscored(bench, base)}" if base.unscored else ""
    raise NothingToFlipError(
        f"nothing to flip: none of the model's answers without context is unsafe ({asked}).{poor} "
        "Give harder prompts, or a model that is less safe."
    )


def coverage_notes(bench: Bench, base: SplitBaseline) -> list[str]:
    """Return what the reader must know of a baseline that could not be scored well."""
    num_harmful = base.unsafe_rate.n + len(base.unscored)
    if len(base.unscored) <= MAX_UNSCORED_RATE * num_harmful:
        return []
    share = f"{len(base.unscored)} of {num_harmful}"
    return [f"Poor coverage: {share} harmful {base.split} baselines are unscored. {_why_unscored(bench, base)}"]


def _why_unscored(bench: Bench, base: SplitBaseline) -> str:
    outcomes = [one for prompt in base.unscored for one in base.outcomes[prompt.prompt_id].unscored]
    reasons = Counter(outcome.verdict.reason or "no reason given" for outcome in outcomes)
    reason, count = reasons.most_common(1)[0]
    rollouts = bench.ledger.rollouts((outcome.rollout_id for outcome in outcomes), errors=True)
    num_cut = sum(rollout.finish_reason == "length" for rollout in rollouts.values())
    hint = f" {num_cut} were cut at {bench.sampling.max_tokens} tokens: raise max_tokens." if num_cut else ""
    return f"Unscored most often: {' '.join(reason.split())[:120]} ({count}).{hint}"
