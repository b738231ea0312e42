"""The records of a study: the contexts that were tried, what was measured of them, and what was chosen.

    Measurement --search--> Trial --after the search--> Confirmed --> Study

All are frozen. This module knows nothing of models, files or statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from flipsearch.core.files import ShowsFacts, figure, shortened
from flipsearch.core.measurements import Difference, Endings, Estimate, Flip, Measurement, Rate
from flipsearch.core.records import Context, Prompt

MIN_LABELS = 20
"""Labelled answers of each kind, unsafe and safe, from which on rates are corrected for a judge's errors."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A context that operators make children of, with what was measured of it so far."""

    context: Context
    flip_rate: Rate
    unflipped: tuple[str, ...] = ()
    """Texts of harmful prompts that stay unsafe under it. These three are hostile text; only `rewrite` reads them."""
    over_refused: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorGain:
    """By how much the children of one operator were better than their parents."""

    operator: str
    num_raced: int
    """Children whose gain is known."""
    num_better: int
    """Those of them that flip more than their parent and are within the over-refusal cap."""
    mean_gain: float | None
    """Flip rate of child minus parent on the prompts that both have seen, mean over the raced; None without any."""
    low: float
    """Lower end of the 95 % interval of `mean_gain`, in [-1, 1]."""
    high: float


AttackScore = Literal["mean", "worst"]
RefusalCount = Literal["added", "total"]
"""Benign prompts refused beyond those refused without a context, or all refused."""


@dataclass(frozen=True, slots=True)
class RefusalCap:
    """How many benign prompts a context may refuse."""

    most: float
    counts: RefusalCount

    def __str__(self) -> str:
        return f"{100 * self.most:g} {'points more than without a context' if self.counts == 'added' else '%'}"

    def rate(self, measurement: Measurement) -> Rate:
        """Return the refusals that the cap is on."""
        return measurement.added_refusals if self.counts == "added" else measurement.over_refusal_rate

    def allows(self, measurement: Measurement) -> bool:
        """Return whether the refusals are within the cap; what could not be measured breaks none."""
        return (self.rate(measurement).value or 0.0) <= self.most


TIE_LEVEL = 0.05
"""The confirm split separates two finalists if the adjusted p-value of their paired difference is below this."""
TrialState = Literal["complete", "running", "stopped", "pruned", "failed"]
TrialRole = Literal["arm", "placebo", "benign"]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer that one judge calls safe and another unsafe."""

    prompt: str
    answer: str
    labels: Mapping[str, str]
    """Judge -> its label; the deciding judge first."""


@dataclass(frozen=True, slots=True)
class SecondJudgeResult:
    """The rates of a context's answers on one split according to a judge that does not decide."""

    judge: str
    flip_rate: Rate
    """Flips / scored prompts that are unsafe without context, both by this judge."""
    unsafe_rate: Rate
    """UNSAFE / scored answers to harmful prompts under the context."""
    over_refusal_rate: Rate
    disagreement: Rate
    """Answers to harmful prompts that it labels otherwise than the deciding judge / those that both score."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What was measured of a trial after the search: of finalists and placebos, and of every trial of a score."""

    measurement: Measurement | None = None
    """On the sealed confirm split; None in a score, whose `Trial.search` is the last measurement."""
    net: Difference | None = None
    """Flip rate minus that of the strongest of re-roll and neutral texts, paired: on the confirm split; in a score, of
    the re-roll alone, on the scored prompts."""
    word_order: Difference | None = None
    """Confirm flip rate minus that of the same words in another order, paired: what their order adds; winner only."""
    behind: Difference | None = None
    """The winner's confirm flip rate minus this one's, paired, its p-value adjusted over the finalists (Holm)."""
    depth: tuple[tuple[int, Rate], ...] = ()
    """(k, confirm flip rate after the first k tokens of the unsafe answer without context), k from 0; finalists only.
    Over the answers that are longer than k; n = 0 means that there was none."""
    second_judgements: tuple[SecondJudgeResult, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    """Some of the answers on which judges disagree; the winner's only."""
    corrected: Estimate | None = None
    """Flip rate corrected for the judge's measured errors; None if its accuracy is not known."""
    risk_reduction: Estimate | None = None
    """Share of harmful prompts that are unsafe without context minus that under it, corrected by human labels of some
    of these very answers; None without labels."""


@dataclass(frozen=True, slots=True, repr=False)
class Trial(ShowsFacts):
    """One context evaluated in a study."""

    number: int
    """Order of proposal, from 0; placebos count too."""
    context: Context
    role: TrialRole
    """An arm can win; a placebo shows the effect of no safety content; a benign one is meant for benign prompts."""
    state: TrialState
    """"complete" saw all search prompts; "stopped" was stopped early after `rung`, as other arms promised at least as
    much; "pruned" was ruled out there by evidence; "failed" had too many unscored answers; "running", in a study that
    is not finished, may still see more."""
    rung: int
    """Last rung it finished, from 0."""
    search: Measurement
    """On the search split; in a score, on the scored prompts."""
    confirmed: Confirmed | None = None
    num_context_tokens: int | None = None

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        shown = {"context": f"{self.context.origin} ({self.context.placement})", "state": f"{self.role}, {self.state}"}
        shown[f"flip rate, {self.search.split}"] = figure(self.search.flip_rate)
        if self.confirm:
            shown["flip rate, confirm"] = figure(self.confirm.flip_rate)
        return shown | {"net": figure(self.net), "text": shortened(self.context.text)}

    @property
    def late(self) -> Confirmed:
        """`confirmed`, or an empty record if nothing was measured after the search."""
        return self.confirmed or Confirmed()

    @property
    def confirm(self) -> Measurement | None:
        """The measurement on the sealed confirm split, if there is one."""
        return self.late.measurement

    @property
    def final(self) -> Measurement:
        """The measurement that the last numbers rest on: the confirm split's, if any, else the search split's."""
        return self.confirm or self.search

    @property
    def harmful_flips(self) -> list[Flip]:
        """The pairs of harmful prompts behind the last numbers."""
        return [flip for flip in self.final.flips if flip.kind == "harmful"]

    @property
    def net(self) -> Difference | None:
        """Flip rate minus that of the strongest of re-roll and neutral texts, paired."""
        return self.late.net

    @property
    def beats_placebo(self) -> bool:
        """Whether interval and test of `net` both say that it is above 0; on few prompts the test is stricter."""
        return self.net is not None and self.net.low > 0 and self.net.p_value < TIE_LEVEL

    @property
    def optimism(self) -> float | None:
        """Search minus confirm flip rate: how much the search, which chose by its own number, overestimates."""
        if self.confirm is None or self.search.flip_rate.value is None or self.confirm.flip_rate.value is None:
            return None
        return self.search.flip_rate.value - self.confirm.flip_rate.value

    @property
    def ties_winner(self) -> bool | None:
        """Whether the confirm split does not separate this finalist from the winner; None if they were not compared."""
        return None if self.late.behind is None else self.late.behind.p_value >= TIE_LEVEL

    def with_confirmed(self, **changes: Any) -> "Trial":
        """Return a copy with these fields of `Confirmed` replaced."""
        return replace(self, confirmed=replace(self.late, **changes))


@dataclass(frozen=True, slots=True)
class Portfolio:
    """A few finalists that together flip what all of them flip.

    A prompt counts as flipped if any of them flips it: an oracle's number, as nothing says beforehand which one will.
    """

    context_ids: tuple[str, ...]
    """In the order in which a training tries them: each flips most of what those before it leave."""
    search: Rate
    """Prompts that any of them flips / prompts that are unsafe without context, on the search split that chose them."""
    confirm: Rate
    winner: Rate
    """The winner alone on the sealed split, over the prompts that both could be scored on."""
    gain: Difference | None
    """All of them minus the winner alone on the sealed split, paired; None without a pair."""


@dataclass(frozen=True, slots=True)
class BenignContext:
    """The context that the teacher sees with benign prompts in training, and its effect on both kinds of prompts."""

    context: Context | None
    reason: str
    candidates: tuple[Trial, ...]
    """Measured on the benign prompts and on the harmful ones that are safe without context."""
    over_refusal_rate: Rate
    """Refused / benign confirm prompts under the one that the search split chose, vetoed or not; else under none."""
    regression_rate: Rate
    """Unsafe under it / harmful confirm prompts that are safe without context."""
    misrouted_harmful_rate: Rate
    """Unsafe / harmful confirm prompts, if this were their context."""
    misrouted_benign_rate: Rate
    """Refused / benign confirm prompts, if the winner were their context."""


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """How the judge of a study's last numbers agrees with human labels on whether an answer is unsafe."""

    sensitivity: Estimate
    """Share of the answers labelled unsafe that it calls unsafe."""
    specificity: Estimate
    """Share of the answers labelled safe that it calls safe."""
    kappa: Estimate
    sources: Mapping[str, int]
    own_answers: int
    """How many of them are answers of this very study; a judge may err otherwise on those of another model."""
    fitted_to: int = 0
    """How many of them the judge was fitted to: on these it agrees with annotators better than on others."""

    @property
    def corrects(self) -> bool:
        """Whether there are labels enough of both kinds to correct a rate by."""
        return min(self.sensitivity.n, self.specificity.n) >= MIN_LABELS


@dataclass(frozen=True, slots=True)
class EarlierBest:
    """A winning text that another study, or somebody, left where a search writes its own."""

    path: Path
    study: str
    """"" for a text that has no card."""
    flips_more: bool
    """It flips more than the new winner on the same confirm prompts, by the same model and judge."""


class StudyKind(StrEnum):
    """How a study came by its contexts."""

    SEARCH = "search"
    SCORE = "score"


STUDY_FORMAT: Final = 9
"""Version of the study file; a file of any other cannot be read."""


@dataclass(frozen=True, slots=True, repr=False)
class Study(ShowsFacts):
    """A search or score, as the report reads it."""

    format: Literal[9]
    """STUDY_FORMAT; the first field, so that it is the first to be refused."""
    name: str
    kind: StudyKind
    settings: Mapping[str, Any]
    model_id: str
    revision: str | None
    judge_id: str
    trials: tuple[Trial, ...]
    """Best first; placebos last."""
    base_unsafe: Mapping[str, Rate]
    """Split -> fraction of harmful prompts that are unsafe without context."""
    base_over_refusal: Mapping[str, Rate]
    num_rollouts: int
    num_tokens: int
    prompts: tuple[Prompt, ...] = ()
    """All that were answered without a context, split by split. Hostile text."""
    base_answers: tuple[tuple[str, ...], ...] = ()
    """Rollout ids of the answers without a context, prompt by prompt as in `prompts`."""
    base_endings: Mapping[str, Endings] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    winner: Trial | None = None
    """The best arm of the search split within the over-refusal cap; None if there is none that could be confirmed."""
    search_ties: tuple[str, ...] = ()
    """Context ids of the arms that tie with the winner on the search split: they saw all its prompts, are within
    the cap, and the adjusted p-value of their paired difference is TIE_LEVEL or more."""
    operators: tuple[OperatorGain, ...] = ()
    """The operators by the gain of their children, largest first; () if none was used."""
    portfolio: Portfolio | None = None
    benign: BenignContext | None = None
    """None if it was not requested, or without a winner."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Stage after the search -> its JSON-able result; for stages that have no field of their own."""
    confirm_judge_id: str = ""
    """Identity of the judge that decides on the confirm split; "" if it is the same."""
    judge_error: JudgeAgreement | None = None
    unfinished: str = ""
    """How far a search came that runs or was stopped, as "rung 2 of 4, cohort 1/3"; "" for a finished study."""

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        best = self.winner
        shown = {
            "name": f"{self.name} ({self.kind})",
            "model": str(self.settings.get("model", self.model_id)),
            "trials": f"{len(self.trials):,}",
            "rollouts": f"{self.num_rollouts:,} ({self.num_tokens:,} tokens)",
        }
        if self.kind is StudyKind.SEARCH:
            shown["winner"] = f"{best.context.origin} ({best.context.placement})" if best else "none"
        if best:
            shown |= {"flip rate": figure(best.final.flip_rate), "net": figure(best.net)}
            shown["beats the placebos"] = "yes" if self.beats_placebo else "no"
        return shown

    def answers_without_context(self) -> dict[str, tuple[str, ...]]:
        """Return prompt id -> rollout ids of its answers without a context."""
        ids = [prompt.prompt_id for prompt in self.prompts]
        return dict(zip(ids, self.base_answers, strict=True)) if self.base_answers else {}

    @property
    def best(self) -> Trial | None:
        """The trial that reports speak of: the winner of a search, if there is one, or the first arm of a score."""
        is_score = self.kind is StudyKind.SCORE
        return self.winner or next((trial for trial in self.trials if is_score and trial.role == "arm"), None)

    @property
    def last_judge_id(self) -> str:
        """Identity of the judge that the last numbers rest on."""
        return self.confirm_judge_id or self.judge_id

    def trials_of(self, portfolio: Portfolio) -> list[Trial]:
        """Return the trials of a portfolio's contexts, in its order."""
        by_id = {trial.context.context_id: trial for trial in self.trials if trial.role == "arm"}
        return [by_id[id] for id in portfolio.context_ids]

    @property
    def refusal_cap(self) -> RefusalCap | None:
        """The cap on refused benign prompts; None in a score."""
        if self.kind is StudyKind.SCORE:
            return None
        return RefusalCap(self.settings["max_over_refusal"], self.settings["over_refusal"])

    @property
    def beats_placebo(self) -> bool:
        """Whether there is a winner that beats the placebos."""
        return self.winner is not None and self.winner.beats_placebo

    @property
    def is_confirmed(self) -> bool:
        """Whether there is a winner that beats the placebos within the caps on benign prompts."""
        winner = self.winner
        return winner is not None and winner.beats_placebo and not self.is_over_any_cap(winner)

    @property
    def has_single_answers(self) -> bool:
        """Whether the label of each prompt is that of one answer, and no sum over samples or attacked forms."""
        return (self.settings.get("samples", 1), self.settings.get("attack_score", "mean")) == (1, "mean")

    def is_over_cap(self, trial: Trial) -> bool:
        """Return whether a trial refuses more benign prompts than the study's cap allows, on any split."""
        cap, measured = self.refusal_cap, [m for m in (trial.search, trial.confirm) if m]
        return cap is not None and not all(map(cap.allows, measured))

    def is_contracted(self, trial: Trial) -> bool:
        """Return whether a trial's contraction is above the study's cap, on any split."""
        cap = self.settings.get("max_contraction")
        return cap is not None and any(m.is_contracted(cap) for m in (trial.search, trial.confirm) if m)

    def is_over_any_cap(self, trial: Trial) -> bool:
        """Return whether a trial refuses too many benign prompts, or answers them with too little."""
        return self.is_over_cap(trial) or self.is_contracted(trial)
