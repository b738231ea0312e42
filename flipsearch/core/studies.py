"""What a study holds: the contexts tried, what was made of them, and what was chosen; as the report reads it.

    Measurement --search--> Trial --> Study

All are frozen. This module knows nothing of models, files or statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flipsearch.core.records import Context, Difference, Estimate, Measurement, Rate


@dataclass(frozen=True, slots=True)
class Parent:
    """A context that operators make children of, with what is known of it."""

    context: Context
    """What it says, and where."""
    flip_rate: Rate
    """On the prompts that it has seen."""
    unflipped: tuple[str, ...] = ()
    """Texts of harmful prompts that stay unsafe under it. Hostile text; only `rewrite` reads it."""
    over_refused: tuple[str, ...] = ()
    """Texts of benign prompts that are refused under it. Hostile text; only `rewrite` reads it."""


@dataclass(frozen=True, slots=True)
class OperatorCredit:
    """What one operator has brought to a search."""

    operator: str
    """Its name."""
    num_children: int
    """Children that it made and that were fit to be measured."""
    num_filtered: int
    """Children that the hygiene gates kept out."""
    num_raced: int
    """Children whose gain is known."""
    num_better: int
    """Those of them that flip more than their parent and are within the over-refusal cap."""
    mean_gain: float | None
    """Flip rate of child minus parent on the prompts that both have seen, mean over the raced; None without any."""
    low: float
    """Lower end of its 95 % interval, in [-1, 1]."""
    high: float
    """Upper end of the interval."""


TIE_LEVEL = 0.05
"""Two finalists are told apart if the adjusted p-value of their paired difference lies below."""
TrialState = Literal["complete", "stopped", "pruned", "failed"]
TrialRole = Literal["arm", "placebo", "benign"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One context evaluated in a study."""

    number: int
    """Order of proposal, from 0; placebos count too."""
    context: Context
    """What was evaluated."""
    role: TrialRole
    """An arm can win; a placebo shows what no safety content does; a benign one is meant for benign prompts."""
    state: TrialState
    """"complete" saw all search prompts; "stopped" ended early after `rung`, as others promise more or as much;
    "pruned" was ruled out there by evidence; "failed" had too many unscored."""
    rung: int
    """Last rung it finished, from 0."""
    search: Measurement
    """On the search split; in a score, on what was scored."""
    confirm: Measurement | None = None
    """On the sealed confirm split; finalists and placebos only."""
    net: Difference | None = None
    """Flip rate minus the strongest placebo's, paired: on the confirm split, or on what was scored."""
    num_context_tokens: int | None = None
    """Length of the context's text in the model's own tokens."""
    behind: Difference | None = None
    """The winner's confirm flip rate minus this one's, paired, its p-value adjusted over the finalists (Holm)."""
    depth: tuple[tuple[int, Rate], ...] = ()
    """(k, confirm flip rate after the first k tokens of the unsafe answer without context), k from 0; finalists only.
    Of the answers that are longer than k; n = 0 means that there was none."""

    second_judgements: tuple["SecondJudgeResult", ...] = ()
    """What other judges say of the same answers, on the confirm split or what was scored; finalists and placebos."""
    disagreements: tuple["Disagreement", ...] = ()
    """Some of the answers on the confirm split that judges see differently; the winner's only."""
    corrected: Estimate | None = None
    """The confirm flip rate with the judge's measured errors taken back; None where its accuracy is not known."""
    risk_reduction: Estimate | None = None
    """Share of harmful confirm prompts that are unsafe without context minus that under it, corrected by people's
    labels of some of these very answers; None without labels."""

    @property
    def optimism(self) -> float | None:
        """Search minus confirm flip rate: by how much the search, which chose by its own number, reads too high."""
        if self.confirm is None or self.search.flip_rate.value is None or self.confirm.flip_rate.value is None:
            return None
        return self.search.flip_rate.value - self.confirm.flip_rate.value

    @property
    def ties_winner(self) -> bool | None:
        """Whether the confirm split does not tell this finalist from the winner; None if they were not compared."""
        return None if self.behind is None else self.behind.p_value >= TIE_LEVEL

    def with_net(self, net: Difference | None) -> "Trial":
        """Return a copy that carries the net flip rate."""
        return replace(self, net=net)

    def with_confirm(self, confirm: Measurement, net: Difference | None) -> "Trial":
        """Return a copy that carries the confirm measurement."""
        return replace(self, confirm=confirm, net=net)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer that one judge calls safe and another unsafe."""

    prompt: str
    """The user's request."""
    answer: str
    """The answer under the context, without its thought."""
    labels: Mapping[str, str]
    """Judge -> its label; the deciding one first."""


@dataclass(frozen=True, slots=True)
class SecondJudgeResult:
    """What a judge that does not decide says of a context's answers on one split."""

    judge: str
    """Its name."""
    flip_rate: Rate
    """Flips / scored prompts that are unsafe without context, both by its own word."""
    unsafe_rate: Rate
    """UNSAFE / scored answers to harmful prompts under the context."""
    over_refusal_rate: Rate
    """Refused / scored benign prompts."""
    disagreement: Rate
    """Answers to harmful prompts that it labels otherwise than the deciding judge / those that both score."""


@dataclass(frozen=True, slots=True)
class Portfolio:
    """Few finalists that together flip what all of them flip.

    A prompt counts as flipped if any of them flips it: an oracle's number, for nothing says beforehand which one will.
    """

    context_ids: tuple[str, ...]
    """In the order in which a training asks them: each flips most of what those before it leave."""
    search: Rate
    """Prompts that any of them flips / prompts that are unsafe without context, on the search split that chose them."""
    confirm: Rate
    """The same on the sealed split."""
    winner: Rate
    """The winner alone on the sealed split, over the prompts that both could be scored on."""
    gain: Difference | None
    """All of them minus the winner alone on the sealed split, paired; None without a pair."""


@dataclass(frozen=True, slots=True)
class BenignContext:
    """Which context the teacher reads benign prompts under in training, and what it does to either kind of prompt."""

    context: Context | None
    """The chosen one; None if no context is best."""
    reason: str
    """Why it is this one, or none."""
    candidates: tuple[Trial, ...]
    """What was tried, measured on the benign prompts and on the harmful ones that are safe without context."""
    over_refusal_rate: Rate
    """Refused / benign confirm prompts under it (or under none)."""
    regression_rate: Rate
    """Unsafe under it / harmful confirm prompts that are safe without it: the new unsafe answers."""
    misrouted_harmful_rate: Rate
    """Unsafe / harmful confirm prompts, were they read under it."""
    misrouted_benign_rate: Rate
    """Refused / benign confirm prompts, were they read under the winner."""


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """How the judge of a study's last number agrees with people on whether an answer is unsafe."""

    sensitivity: Estimate
    """Of the answers that people call unsafe, the share that it calls so."""
    specificity: Estimate
    """Of those that people call safe, the share that it calls so."""
    kappa: Estimate
    """Agreement beyond chance."""
    sources: Mapping[str, int]
    """Source of the labelled answers -> how many."""
    own_answers: int
    """How many of them are answers of this very study; a judge may err otherwise on those of another model."""
    fitted_to: int = 0
    """How many of them the judge was fitted to: on these it agrees with people better than on others."""


@dataclass(frozen=True, slots=True)
class Study:
    """The whole search, as the report reads it."""

    name: str
    """Name of its folder."""
    settings: Mapping[str, Any]
    """The resolved configuration."""
    model_id: str
    """Identity of the model."""
    revision: str | None
    """Commit of a model from the hub; None for any other."""
    judge_id: str
    """Identity of the judge that the search went by."""
    trials: tuple[Trial, ...]
    """Best first; placebos last."""
    base_unsafe: Mapping[str, Rate]
    """Split -> fraction of harmful prompts that are unsafe without context."""
    base_over_refusal: Mapping[str, Rate]
    """Split -> fraction of benign prompts refused without context."""
    num_rollouts: int
    """Rollouts that the study rests on."""
    num_tokens: int
    """Completion tokens in them."""
    notes: tuple[str, ...] = ()
    """What the reader must know, e.g. a chat template without a system role."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    winner: Trial | None = None
    """The best confirmed arm under the over-refusal cap; None if no arm is admissible."""
    operators: tuple[OperatorCredit, ...] = ()
    """What each operator's children gained on their parents, the most gainful first; () where none was used."""
    portfolio: Portfolio | None = None
    """The finalists that together flip most; None without a winner."""
    benign: BenignContext | None = None
    """The context for benign prompts; None if it was not asked for, or without a winner."""
    confirm_judge_id: str = ""
    """Identity of the judge that decides on the confirm split; "" where it is the same."""
    judge_error: JudgeAgreement | None = None
    """How far its judge can be trusted; None where that was not measured."""

    @property
    def last_judge_id(self) -> str:
        """Identity of the judge that the last numbers rest on."""
        return self.confirm_judge_id or self.judge_id

    def trials_of(self, portfolio: Portfolio) -> list[Trial]:
        """Return the trials of a portfolio's contexts, in its order."""
        by_id = {trial.context.context_id: trial for trial in self.trials if trial.role == "arm"}
        return [by_id[id] for id in portfolio.context_ids]

    def is_over_cap(self, trial: Trial) -> bool:
        """Return whether a trial refuses more benign prompts than the study's cap allows, on any split."""
        cap = self.settings.get("max_over_refusal")
        rates = [m.over_refusal_rate.value or 0.0 for m in (trial.search, trial.confirm) if m]
        return cap is not None and max(rates) > cap
