"""Several studies beside each other: the same contexts under other models, judges or seeds.

A difference is paired over the prompts that are unsafe without a context in both studies: where models differ, their
flip rates rest on other prompts, and say less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from flipsearch.core.errors import ConfigError
from flipsearch.core.measurements import Difference, json_value
from flipsearch.core.studies import Study, Trial
from flipsearch.measuring.measure import flip_difference
from flipsearch.reporting.names import quoted


@dataclass(frozen=True, slots=True)
class SharedContext:
    """A context that several studies measured."""

    context_id: str
    name: str
    trials: tuple[Trial | None, ...]
    """One per study, None where it was not measured."""
    differences: tuple[Difference | None, ...]
    """To the first study that measured it, paired; None for that one, and where no prompt counts in both."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Studies that share contexts, and what those do in each."""

    studies: tuple[Study, ...]
    shared: tuple[SharedContext, ...]
    """By their mean flip rate, best first; the control without a text last."""
    num_decided: int
    """Studies in which the best shared context is better than every other one, by paired intervals."""

    @property
    def ranking(self) -> str:
        """Whether these studies tell which of the shared contexts is best, in a sentence."""
        num = len(self.studies)
        if sum(bool(row.name != CONTROL) for row in self.shared) < 2:
            return "Fewer than two contexts are shared: there is nothing to rank."
        winners = {max(rates)[1] for rates in self._rates() if rates}
        if self.num_decided < num:
            return (
                f"The ranking is not decisive: only in {self.num_decided} of {num} studies is the best shared context "
                "better than every other one, by paired 95 % intervals."
            )
        same = "the same one" if len(winners) == 1 else f"{len(winners)} different ones"
        return f"In each of the {num} studies one shared context is better than all others: {same}."

    def _rates(self) -> list[list[tuple[float, str]]]:
        """Return flip rate and id of the shared contexts, study by study."""
        return [
            [
                (trial.final.flip_rate.value or 0.0, row.context_id)
                for row in self.shared
                if row.name != CONTROL and (trial := row.trials[number])
            ]
            for number in range(len(self.studies))
        ]

    def frame(self) -> pd.DataFrame:
        """Return one row per shared context and study."""
        rows: list[dict[str, Any]] = []
        for row in self.shared:
            for study, trial, difference in zip(self.studies, row.trials, row.differences, strict=True):
                if trial is None:
                    continue
                rate = trial.final.flip_rate
                cells: dict[str, Any] = {"context": row.name, "context_id": row.context_id, "study": study.name}
                cells |= {key: study.settings.get(key) for key in ("model", "judge", "seed")}
                cells |= {"split": trial.final.split, "flip_rate": rate.value, "low": rate.low, "high": rate.high}
                cells |= {"n": rate.n, "over_refusal_rate": trial.final.over_refusal_rate.value}
                for name in ("value", "low", "high", "n", "p_value"):
                    key = "difference" if name == "value" else f"difference_{name}"
                    cells[key] = getattr(difference, name) if difference else None
                rows.append({**cells, "text": trial.context.text})
        return pd.DataFrame(rows)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = self.frame().astype(object).where(self.frame().notna(), None).to_dict("records")
        return {"studies": [study.name for study in self.studies], "ranking": self.ranking, "rows": json_value(rows)}


CONTROL = "no context"


def compare_studies(studies: Sequence[Study]) -> Comparison:
    """Return how the contexts that at least two of the studies measured do in each; ConfigError if there is none."""
    by_study = [{trial.context.context_id: trial for trial in study.trials} for study in studies]
    ids = list(dict.fromkeys(id for trials in by_study for id in trials))
    shared = [_shared(id, tuple(trials.get(id) for trials in by_study)) for id in ids]
    shared = [row for row in shared if sum(trial is not None for trial in row.trials) > 1]
    if not shared:
        names = ", ".join(study.name for study in studies)
        raise ConfigError(
            f"the studies {names} have no context in common; `flipsearch score CARD` measures one anywhere."
        )
    shared.sort(key=lambda row: (row.name == CONTROL, -_mean_rate(row)))
    columns = [[row.trials[number] for row in shared if row.name != CONTROL] for number in range(len(studies))]
    return Comparison(tuple(studies), tuple(shared), sum(map(_is_decided, columns)))


def _shared(context_id: str, trials: tuple[Trial | None, ...]) -> SharedContext:
    first = next((trial for trial in trials if trial), None)
    assert first is not None
    name = CONTROL if not first.context.text.strip() else first.context.template or quoted(first.context.text)
    pairs = (None if trial is None or trial is first else _difference(trial, first) for trial in trials)
    return SharedContext(context_id, name, trials, tuple(pairs))


def _difference(trial: Trial, first: Trial) -> Difference | None:
    """Return the paired difference on the last split that both saw prompts of."""
    return flip_difference(trial.final, first.final) or flip_difference(trial.search, first.search)


def _mean_rate(row: SharedContext) -> float:
    rates = [trial.final.flip_rate.value or 0.0 for trial in row.trials if trial]
    return sum(rates) / len(rates)


def _is_decided(trials: Sequence[Trial | None]) -> bool:
    """Return whether the best of a study's shared contexts is better than each other one."""
    there = sorted(filter(None, trials), key=lambda trial: -(trial.final.flip_rate.value or 0.0))
    if len(there) < 2:
        return False
    differences = [_difference(there[0], other) for other in there[1:]]
    return all(difference is not None and difference.low > 0 for difference in differences)
