"""What `flipsearch.api` returns: a finished study, evaluation, judge or training, and where its files are."""

import html
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from flipsearch.core.files import ShowsFacts, html_table, printable, shortened
from flipsearch.core.measurements import json_value
from flipsearch.core.studies import EarlierBest, Study, StudyKind, Trial
from flipsearch.core.sweeps import Sweep
from flipsearch.core.trainings import Anatomy, LoggedAnswer, LogLine, Scorecard, TrainingRun
from flipsearch.judging.accuracy import JudgeAccuracy
from flipsearch.judging.library import Member
from flipsearch.ledger import Ledger
from flipsearch.reporting.anatomy_page import anatomy_verdict
from flipsearch.reporting.cards import scorecard_markdown, scorecard_remarks, scorecard_rows
from flipsearch.reporting.columns import rows
from flipsearch.reporting.formats import (
    Leaderboard,
    flips_table,
    report_format,
    rollouts_table,
    study_summary,
    summary_text,
    write_report,
)
from flipsearch.reporting.outcomes import SCORECARD_PAGE, SWEEP_PAGE, TRAINING_PAGE, loss_ends, scorecard_verdict
from flipsearch.reporting.pages import leaderboard_page, picture_page
from flipsearch.reporting.scorecard_page import PICTURE_HEIGHT, compare_scorecards, scorecard_page
from flipsearch.reporting.study_file import benign_metrics, context_card, portfolio_metrics
from flipsearch.reporting.verdict import Criterion, verdict

NUM_SHOWN = 10
"""Rows of a leaderboard in a notebook."""

if TYPE_CHECKING:
    from flipsearch.judging.compact_fitting import CrossValidation
    from flipsearch.training.preflight import Preflight


@dataclass(frozen=True, repr=False)
class SearchResult(ShowsFacts):
    """A finished study and where its files are."""

    study: Study
    folder: Path
    """reports/<study>."""
    best_path: Path | None = None
    """Where the winning text was written to; None if no context was confirmed."""
    earlier: EarlierBest | None = None
    """The text of another search that was where this one writes its own."""
    is_kept: bool = False
    """It was left there: this search is not confirmed, or flips fewer of the same prompts."""
    was_finished: bool = False
    """The study had been finished before, with the same settings: nothing was generated."""

    @property
    def best(self) -> Trial | None:
        """The winning trial, or None."""
        return self.study.winner

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """One row per trial, best first, placebos last; `leaderboard.full` has every column."""
        return Leaderboard.of(self.study)

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Write the leaderboard to a file: html, csv, json, md, parquet or png, by its ending unless `format` is given.

        The page holds the answers that are in the study's ledger; a picture needs Chromium.
        """
        chosen, ledger = report_format(Path(path), format), self.folder / "ledger.db"

        def page() -> str:
            with Ledger(ledger, read_only=True) if ledger.is_file() else nullcontext() as opened:
                return leaderboard_page(self.study, opened)

        table, picture = (lambda: self.leaderboard.full), (lambda: picture_page(self.study))
        write_report(Path(path), chosen, table, page, picture, lambda: study_summary(self.study))

    def flips(self) -> "pd.DataFrame":
        """Return one row per context and prompt on the last split that the context saw: before, under it, and flipped.

        Texts of prompts and contexts are hostile.
        """
        return flips_table(self.study)

    def rollouts(self) -> "pd.DataFrame":
        """Return one row per rollout in the study's ledger, with its verdicts and the texts of its prompt and context.

        Completions are hostile text.
        """
        with Ledger(self.folder / "ledger.db", read_only=True) as ledger:
            return rollouts_table(ledger, self.study)

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        conclusion = verdict(self.study)
        return {"study": self.study.name, "verdict": conclusion.sentence, "contexts": f"{len(self.study.trials):,}"} | {
            "best": shortened(self.best.context.text) if self.best else "none",
            "page": str(self.folder / "leaderboard.html"),
        }

    def _repr_html_(self) -> str:
        conclusion, board = verdict(self.study), self.leaderboard
        shown = board[[name for name in board.columns if name not in ("context_id", "text", "role")]].head(NUM_SHOWN)
        rows = [
            ["" if pd.isna(v) else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in shown.values
        ]
        basis = html.escape(printable(" ".join(conclusion.basis)))
        more = f"<p>{len(board) - len(rows):,} more in .leaderboard</p>" if len(board) > len(rows) else ""
        page = html.escape(str(self.folder / "leaderboard.html"))
        sentence = html.escape(printable(conclusion.sentence))
        return f"<p><b>{sentence}</b></p><p>{basis}</p>{html_table(rows, list(shown.columns))}{more}<p>{page}</p>"

    @property
    def beats_placebo(self) -> bool | None:
        """Whether there is a winner whose net flip rate is above 0, by interval and test; None for a score."""
        return None if self.study.kind is StudyKind.SCORE else self.study.beats_placebo

    @property
    def is_confirmed(self) -> bool | None:
        """Whether there is a winner that beats the placebos within the caps on benign prompts; None for a score."""
        return None if self.study.kind is StudyKind.SCORE else self.study.is_confirmed

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        study = self.study
        return {
            "study": study.name,
            "folder": str(self.folder),
            "best_path": json_value(self.best_path),
            "kept": str(self.earlier.path) if self.earlier and self.is_kept else None,
            "was_finished": self.was_finished,
            "unfinished": study.unfinished or None,
            "best": context_card(study, study.winner) if study.winner else None,
            "portfolio": portfolio_metrics(study.portfolio) if study.portfolio else None,
            "benign_context": benign_metrics(study.benign) if study.benign else None,
            "beats_placebo": self.beats_placebo,
            "is_confirmed": self.is_confirmed,
            "num_rollouts": study.num_rollouts,
            "num_tokens": study.num_tokens,
            "notes": list(study.notes),
            "leaderboard": rows(study),
        }


@dataclass(frozen=True)
class ContextCheck:
    """Contexts that were measured, and whether they are good enough."""

    result: SearchResult
    criteria: tuple[Criterion, ...]

    @property
    def is_met(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.is_met for criterion in self.criteria)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = [{**json_value(criterion), "is_met": criterion.is_met} for criterion in self.criteria]
        return {"is_met": self.is_met, "criteria": rows, "study": self.result.study.name}


@dataclass(frozen=True, repr=False)
class EvaluationResult(ShowsFacts):
    """A finished evaluation and its scorecard.json, in the checkpoint's folder or under the reports."""

    scorecard: Scorecard
    path: Path

    @property
    def page(self) -> Path:
        """The scorecard as a page."""
        return self.path.with_name(SCORECARD_PAGE)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        shown = {"path": str(self.path), **json_value(self.scorecard)}
        del shown["groups"]  # and the scores of each prompt, which are in the file
        return shown | {"scores": [{k: v for k, v in score.items() if k != "values"} for score in shown["scores"]]}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        return {**self.scorecard.facts(), "path": str(self.path), "page": str(self.page)}

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Write the scorecard to a file: html, csv, json, md, parquet or png, by its ending or as `format` says.

        Answers that changed are on `page` alone, which the evaluation wrote.
        """
        chosen, card = report_format(Path(path), format), self.scorecard
        alone = compare_scorecards([card.model], [card])

        def summary() -> str:
            return summary_text(f"Scorecard of {card.model}", scorecard_verdict(card), scorecard_markdown(card))

        def page() -> str:
            return scorecard_page(card)

        write_report(Path(path), chosen, alone.frame, page, lambda: (page(), PICTURE_HEIGHT), summary)

    def _repr_html_(self) -> str:
        header, *rows = scorecard_rows(self.scorecard)
        remarks = "".join(f"<p>{html.escape(printable(remark))}</p>" for remark in scorecard_remarks(self.scorecard))
        return html_table(rows, header) + remarks


@dataclass(frozen=True)
class JudgeCheck:
    """A judge's agreement with human labels, and where the figures are stored."""

    accuracy: JudgeAccuracy
    path: Path
    studies: tuple[Path, ...]
    """Folders of the studies whose answers were among the labelled ones."""
    replaced: Mapping[str, int] = field(default_factory=dict)
    """Source -> rows of the earlier figures that this check replaced."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        places = {"path": self.path, "studies": self.studies, "replaced": self.replaced}
        return {**self.accuracy.as_dict(), **json_value(places)}


@dataclass(frozen=True)
class LabellingResult:
    """A file of answers for annotators to label."""

    path: Path
    num_prompts: int
    num_answers: int
    """Rows: each prompt's answers without context and under the best contexts."""
    num_labelled: int
    """Rows whose label was known already."""
    reports: Path
    """The parent of the study's folder: where `judge check` looks for it."""
    judge: str
    """The judge of the study's last number, as `judge check` takes it."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**json_value(self)}


@dataclass(frozen=True)
class JudgeFit:
    """A fitted compact judge; `path` holds its weights."""

    path: Path
    sources: dict[str, int]
    """Source -> labelled answers."""
    cross_validation: Mapping[str, "CrossValidation"]
    """By question that was fitted; any other stays with the refusal rules."""

    @property
    def judge(self) -> str:
        """What `--judge` takes."""
        return str(Member("compact", {"weights": str(self.path)}))

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        kappas = json_value(self.cross_validation)
        return {"path": str(self.path), "judge": self.judge, "sources": self.sources, "kappa": kappas}


@dataclass(frozen=True, repr=False)
class TrainingResult(ShowsFacts):
    """A finished training and its checkpoint, a folder that transformers and vLLM load as it is."""

    run: TrainingRun
    log: Sequence[LogLine]
    """One line per optimizer step."""
    folder: Path
    answers: Sequence[LoggedAnswer] = ()
    """What the student answered to a few prompts before, during and after the training."""

    @property
    def page(self) -> Path:
        """What happened, as a page."""
        return self.folder / TRAINING_PAGE

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"folder": str(self.folder), **json_value(self.run), "last_step": dict(self.log[-1])}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        loss = f"{loss_ends(self.log)} (first and last fifth)"
        steps = f"{self.run.num_steps:,} in {self.run.wall_s:,.0f} s"
        shown = {"model": self.run.model, "method": self.run.method, "steps": steps, "loss": loss}
        return shown | {"folder": str(self.folder), "page": str(self.page)}


@dataclass(frozen=True, repr=False)
class AnatomyResult(ShowsFacts):
    """An anatomy, and the folder of its page."""

    anatomy: Anatomy
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: all but the curves, which are in positions.csv."""
        shown = json_value(self.anatomy)
        for part in (*shown["divergences"], *shown["student_divergences"]):
            del part["by_position"]
        for name in ("measurement", "student_measurement"):
            if shown[name]:
                del shown[name]["flips"]
        return {"folder": str(self.folder), "horizon": self.anatomy.horizon, **shown}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        return {
            "model": self.anatomy.model,
            "seen": anatomy_verdict(self.anatomy).sentence,
            "page": str(self.folder / "anatomy.html"),
        }


@dataclass(frozen=True, repr=False)
class PreflightResult(ShowsFacts):
    """A preflight, the folder of its page, and the command that starts the training."""

    preflight: "Preflight"
    folder: Path
    command: str

    @property
    def page(self) -> Path:
        """What was found, as a page."""
        return self.folder / "preflight.html"

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"page": str(self.page), "command": self.command, **self.preflight.as_dict()}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        return {**self.preflight.facts(), "page": str(self.page)}


@dataclass(frozen=True, repr=False)
class SweepResult(ShowsFacts):
    """A sweep of trainings, and the folder of its page, its checkpoints and all that they were measured with."""

    sweep: Sweep
    folder: Path

    @property
    def page(self) -> Path:
        """The results of the trainings, as a page."""
        return self.folder / SWEEP_PAGE

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"folder": str(self.folder), **json_value(self.sweep)}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it."""
        return {**self.sweep.facts(), "page": str(self.page)}


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One line of a diagnosis."""

    section: str
    """packages, machine, model or judge."""
    name: str
    state: Literal["ok", "note", "missing", "failed"]
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What `flipsearch doctor` found."""

    checks: tuple[HealthCheck, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no check failed; what is only not installed is no failure."""
        return all(check.state != "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"is_healthy": self.is_healthy, "checks": json_value(self.checks)}
