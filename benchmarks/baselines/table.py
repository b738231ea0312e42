"""The table and the claims of `search_baselines.py`."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from baselines.ground import Rates
from baselines.methods import Run
from baselines.show import claim, spread
from baselines.truths import TRUTH

PAPER, CAPPED, RANDOM, TPE, GEPA = "paper", "paper, capped", "random", "TPE + Wilcoxon", "GEPA, random edits"
TENTH, OURS = "ours, 1/10", "ours"
REQUIRED_SHARE, REQUIRED_GAIN, REQUIRED_REGRET = 0.1, 5.0, 1.0
Runs = Mapping[str, Sequence[Run]]


class Table:
    """Runs by method, with the true rates of the contexts that they chose."""

    def __init__(self, runs: Runs, truths: Mapping[str, Rates]) -> None:
        self.runs = runs
        self.flips = {name: [_rates(run, truths).flip_rate for run in own] for name, own in runs.items()}
        self.refusals = {name: [_rates(run, truths).over_refusal_rate for run in own] for name, own in runs.items()}

    def show(self) -> None:
        """Print medians with range, one row per method."""
        best = TRUTH["best"]["true"]
        print(
            f"best of the library under the cap: true flip rate {100 * best['flip_rate']:.1f} %, "
            f"over-refusal {100 * best['over_refusal_rate']:.1f} %\n"
            "medians (range); rates in %, tokens in thousands: completion tokens of all distinct rollouts of a run,\n"
            "those that the choice rests on, and the encoded tokens of prompts and contexts"
        )
        heads = ("", "seeds", "true flip rate", "true over-refusal", "tokens", "choice", "prompt", "contexts")
        print("{:18s} {:>5s} {:>19s} {:>18s} {:>16s} {:>6s} {:>6s} {:>8s}".format(*heads))
        for name, runs in self.runs.items():
            print(
                f"{name:18s} {len(runs):5d} {spread(self.flips[name], 100):>19s} "
                f"{spread(self.refusals[name], 100):>18s} "
                f"{spread([run.num_all_tokens for run in runs], 1e-3, 0):>16s} "
                f"{_thousands(runs, lambda run: run.num_tokens)} {_thousands(runs, lambda run: run.num_prompt_tokens)} "
                f"{statistics.median(run.num_contexts for run in runs):8.0f}"
            )

    def claims(self) -> list[tuple[str, bool]]:
        """Return each claim that can be checked, and whether it holds."""
        claims = [self._tenth()] if TENTH in self.runs else []
        if OURS in self.runs:
            claims += [self._gain(baseline) for baseline in (CAPPED, RANDOM, TPE, GEPA) if baseline in self.runs]
            claims.append(self._regret())
        return claims

    def show_claims(self) -> bool:
        """Print the claims; return whether all hold."""
        claims = self.claims()
        for text, holds in claims:
            print(claim(text, holds=holds))
        return all(holds for _, holds in claims)

    def _tenth(self) -> tuple[str, bool]:
        share = self._share(TENTH, PAPER)
        ours, theirs = (100 * statistics.median(self.flips[name]) for name in (TENTH, PAPER))
        text = f"the paper's true flip rate for 1/10 of its tokens: {ours:.1f} against {theirs:.1f} % at {share:.3f}"
        return text, ours >= theirs and share <= REQUIRED_SHARE

    def _gain(self, baseline: str) -> tuple[str, bool]:
        # Sorted by seed; a baseline may have fewer of them.
        gains = [100 * (ours - rate) for ours, rate in zip(self.flips[OURS], self.flips[baseline], strict=False)]
        required = REQUIRED_GAIN if baseline == CAPPED else 0.0
        share = self._share(OURS, baseline)
        text = f"points of true flip rate over '{baseline}' at {share:.2f} of its tokens: {spread(gains)}"
        text = f"{text}, required {required:.0f}"
        return text, statistics.median(gains) >= required

    def _regret(self) -> tuple[str, bool]:
        regrets = [100 * (TRUTH["best"]["true"]["flip_rate"] - rate) for rate in self.flips[OURS]]
        text = f"points of simple regret to the best of the library: {spread(regrets)}"
        text = f"{text}, required at most {REQUIRED_REGRET:.0f}"
        return text, statistics.median(regrets) <= REQUIRED_REGRET

    def _share(self, name: str, baseline: str) -> float:
        """Median over the seeds of a method's tokens over a baseline's."""
        pairs = zip(self.runs[name], self.runs[baseline], strict=False)
        return statistics.median(run.num_all_tokens / compared.num_all_tokens for run, compared in pairs)


def _rates(run: Run, truths: Mapping[str, Rates]) -> Rates:
    """Return the true rates of a run's choice; 0 for a run without an admissible context."""
    return truths[run.context.context_id] if run.context else Rates(0.0, 0.0)


def _thousands(runs: Sequence[Run], of: Callable[[Run], int]) -> str:
    return f"{statistics.median(of(run) for run in runs) / 1e3:6,.0f}"
