"""The record of a sweep: trainings under several contexts, and which figure of a context predicts their harm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flipsearch.core.files import ShowsFacts
from flipsearch.core.measurements import Difference, Estimate, Rate
from flipsearch.core.records import AnswerKind, Context
from flipsearch.core.trainings import Composite

SWEEP_FORMAT = 1
"""Version of sweep.json and of the files of its parts."""


@dataclass(frozen=True, slots=True)
class SweptContext:
    """A context before any training: what it does to the model that is trained."""

    identity: str
    """Content hash of all that this was measured with."""
    context: Context
    name: str
    """For people. May be hostile text."""
    is_placebo: bool
    flip_rate: Rate
    net_flip_rate: Difference | None
    """Flip rate minus that of neutral text of its length and place, paired; None if no prompt counts for both."""
    refusal_share: Rate
    """Flips by refusal / all flips."""
    kinds: Mapping[AnswerKind, int]
    """Kind -> prompts that are unsafe without the context and get such an answer under it."""
    delta_safety: Estimate
    """Sum of KL(with the context || without) over the first tokens of answers to harmful prompts, in nats (Eq. 3)."""
    critical_tokens: int
    """How many tokens these are."""
    added_refusals: Rate

    def predictor(self, name: str) -> float | None:
        """Return one of PREDICTORS; None if it was not measured."""
        figure: Rate | Difference | Estimate | None = getattr(self, name)
        return None if figure is None else figure.value


PREDICTORS = {
    "flip_rate": "flip rate",
    "net_flip_rate": "net flip rate",
    "refusal_share": "share of refusal flips",
    "delta_safety": "Delta_safety",
}
"""Field of SweptContext that may predict harm after training -> what it is called."""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One training of the grid, evaluated on prompts that it never saw."""

    identity: str
    """Content hash of all that it follows from."""
    context_id: str
    method: str
    data_share: float
    seed: int
    num_prompts: int
    """Training prompts that were learnt from: a supervised method leaves out those without a kept answer."""
    num_steps: int
    num_tokens: int
    harm: float | None
    """Mean of the harmful rates over the sets; None if they could not be scored."""
    base_harm: float | None
    """That of the model before the training."""
    over_refusal: float | None
    base_over_refusal: float | None
    composite: Composite | None
    """S of OPSA Eq. 6."""
    tax: Estimate | None
    """Reasoning accuracy that was lost; None if it was not measured."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """How well a figure of the contexts predicts harm after training."""

    predictor: str
    """One of PREDICTORS."""
    num_contexts: int
    """Contexts that have the figure."""
    spearman: float | None
    """Correlation of the figure with mean harm over the seeds, by ranks; None where either is all ties."""
    p_value: float | None
    """Two-sided, over permutations of the contexts."""
    by_seed: tuple[float | None, ...]
    """The correlation with the harm of one seed's trainings."""
    behind_best: Estimate | None
    """How much stronger the best figure's correlation is, over contexts that have both; None for the best itself."""


@dataclass(frozen=True, slots=True)
class SweepGroup:
    """All trainings by one method on one share of the data."""

    method: str
    data_share: float
    predictions: tuple[Prediction, ...]
    """The best first; none with fewer than LEAST_CONTEXTS contexts."""


@dataclass(frozen=True, slots=True, repr=False)
class Sweep(ShowsFacts):
    """A grid of trainings: contexts x methods x data sizes x seeds, all with as many steps."""

    format: int
    name: str
    model: str
    contexts: tuple[SweptContext, ...]
    """By flip rate, low ones first."""
    runs: tuple[SweepRun, ...]
    groups: tuple[SweepGroup, ...]
    num_planned: int
    """Trainings of the grid; fewer runs are there if some could not be made."""
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def runs_of(self, context_id: str, method: str, data_share: float) -> Sequence[SweepRun]:
        """Return the trainings of one cell, which differ by their seeds alone."""
        return [
            run for run in self.runs if (run.context_id, run.method, run.data_share) == (context_id, method, data_share)
        ]

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        best = next((group.predictions[0] for group in self.groups if group.predictions), None)
        shown = {"model": self.model, "trainings": f"{len(self.runs)} of {self.num_planned}"}
        if best and best.spearman is not None:
            shown["predicts harm best"] = f"{PREDICTORS[best.predictor]} (Spearman {best.spearman:.2f})"
        return shown
