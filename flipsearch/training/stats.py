"""What a step did, by label: lengths, ends, divergence by position, entropy, teacher mass, leakage.

Positions are those of a completion token: "early" the first EARLY tokens, where the paper's Figure 2 has its peaks,
"late" from LATE on.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from flipsearch.core.records import Context
from flipsearch.training.divergence import PerToken
from flipsearch.training.rows import Row

EARLY, LATE, FIRST = 10, 30, 30
LEAK_WORDS = 5
"""So many of the context's words in a row, in what the student writes without it, count as a mention of the context."""


class StepStats:
    """Sums over the rows of one optimizer step."""

    def __init__(self) -> None:
        self._lengths: dict[str, list[int]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.rollout_s = 0.0
        """Seconds that sampling took."""

    @classmethod
    def of_parts(cls, parts: Sequence["StepStats"]) -> "StepStats":
        """Return one step's stats of several processes as if one had seen all of it; the slowest sampled longest."""
        whole = cls()
        for part in parts:
            for name, count in part._counts.items():
                whole._counts[name] += count
            for kind, lengths in part._lengths.items():
                whole._lengths[kind] += lengths
            for name, values in part._values.items():
                whole._values[name] += values
            whole.rollout_s = max(whole.rollout_s, part.rollout_s)
        return whole

    def add_row(self, row: Row, context: Context | None) -> None:
        """Count a row as it was sampled."""
        kind = row.prompt.kind
        self._lengths[kind].append(len(row.completion_ids))
        self._counts[f"ended_{kind}"] += row.finish_reason == "stop"
        self._counts[f"truncated_{kind}"] += row.finish_reason == "length"
        self._counts[f"leaks_{kind}"] += context is not None and mentions(row.completion, context.text)

    def add_tokens(self, rows: Sequence[Row], per_token: PerToken) -> None:
        """Add what is known of the tokens of `rows`, which stand row by row."""
        divergence, mass, entropy = (values.detach().cpu() for values in per_token)
        start = 0
        for row in rows:
            end = start + len(row.completion_ids)
            own, kind = divergence[start:end], row.prompt.kind
            for name, values in (("", own), ("_early", own[:EARLY]), ("_late", own[LATE:])):
                self._values[f"divergence{name}_{kind}"].append(values)
            self._values[f"entropy_first_{kind}"].append(entropy[start : start + FIRST][: end - start])
            self._values["teacher_mass"].append(mass[start:end])
            start = end

    def summary(self) -> dict[str, float]:
        """Return the means and rates of everything added; what was not seen is left out."""
        every = [length for lengths in self._lengths.values() for length in lengths]
        found: dict[str, float] = {"num_rollouts": len(every), "num_tokens": sum(every), "rollout_s": self.rollout_s}
        for kind, lengths in sorted(self._lengths.items()):
            ordered, n = sorted(lengths), len(lengths)
            found |= {
                f"num_{kind}": n,
                f"length_mean_{kind}": sum(lengths) / n,
                f"length_p95_{kind}": ordered[min(n - 1, int(0.95 * n))],
                f"eos_rate_{kind}": self._counts[f"ended_{kind}"] / n,
                f"truncation_rate_{kind}": self._counts[f"truncated_{kind}"] / n,
                f"leakage_rate_{kind}": self._counts[f"leaks_{kind}"] / n,
            }
        for name, parts in sorted(self._values.items()):
            values = torch.cat(parts)
            if len(values):
                found[name] = values.mean().item()
        return {name: round(value, 6) for name, value in found.items()}


def mentions(completion: str, context: str) -> bool:
    """Return whether a completion repeats LEAK_WORDS words of the context in a row."""
    words = context.lower().split()
    text = " ".join(completion.lower().split())
    size = min(LEAK_WORDS, len(words))
    return size > 0 and any(" ".join(words[i : i + size]) in text for i in range(len(words) - size + 1))
