"""The library's front door: search, score, train, evaluate, report, list_things. The command line calls nothing else.

    settings --check--> names, prompts, judge, folder --load--> backend --search--> Study --write--> files

Everything that can be wrong with the input is found before the model is loaded.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flipsearch import registry
from flipsearch.config import (
    EvalConfig,
    ModelConfig,
    ReportConfig,
    ScoreConfig,
    StudyConfig,
    TrainConfig,
    make_config,
    read_toml,
    toml_text,
)
from flipsearch.errors import ConfigError, StudyError, unknown_name
from flipsearch.judging.library import list_judges, load_judge
from flipsearch.ledger import Ledger
from flipsearch.measure import Bench, Progress
from flipsearch.prompts.problems import list_problem_sets
from flipsearch.prompts.sets import PromptSet, list_sets, load_prompts
from flipsearch.protocols import Backend
from flipsearch.records import Context, Study, Trial
from flipsearch.reporting.card import context_card
from flipsearch.reporting.files import read_study, write_best, write_study, write_text
from flipsearch.reporting.leaderboard import leaderboard, rows
from flipsearch.reporting.scorecard import scorecard_dict, write_scorecard
from flipsearch.reporting.training_files import read_training, training_dict, write_model_card, write_training
from flipsearch.scores import Scorecard
from flipsearch.templating.given import Card, given_card, given_contexts
from flipsearch.templating.library import load_library
from flipsearch.templating.placebos import control_context
from flipsearch.training_run import LogLine, TrainingRun

if TYPE_CHECKING:
    import pandas as pd

Checked = TypeVar("Checked", bound=ModelConfig)
SETTINGS_FILE, LEDGER_FILE = "study.toml", "ledger.db"


@dataclass(frozen=True)
class Findings:
    """A finished study and where its files lie."""

    study: Study
    """What was found."""
    folder: Path
    """reports/<study>."""
    best_path: Path | None = None
    """Where the winning text was copied to; None if there is no winner."""

    @property
    def best(self) -> Trial | None:
        """The winning trial, or None."""
        return self.study.winner

    @cached_property
    def leaderboard(self) -> "pd.DataFrame":
        """One row a trial, best first, placebos last."""
        return leaderboard(self.study)

    @property
    def beats_placebo(self) -> bool | None:
        """Whether there is a winner whose net flip rate is above 0 with its whole interval; None for a score."""
        if "num_contexts" not in self.study.settings:
            return None
        winner = self.study.winner
        return winner is not None and winner.net is not None and winner.net.low > 0

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "study": self.study.name,
            "folder": str(self.folder),
            "best_path": str(self.best_path) if self.best_path else None,
            "best": context_card(self.study, self.study.winner) if self.study.winner else None,
            "beats_placebo": self.beats_placebo,
            "num_rollouts": self.study.num_rollouts,
            "num_tokens": self.study.num_tokens,
            "notes": list(self.study.notes),
            "leaderboard": rows(self.study),
        }


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation and where its scorecard lies."""

    scorecard: Scorecard
    """Safety, over-refusal, reasoning, S and tax."""
    path: Path
    """scorecard.json: in the checkpoint's folder, or under the reports."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"path": str(self.path), **scorecard_dict(self.scorecard)}


@dataclass(frozen=True)
class Trained:
    """A finished training and where its checkpoint lies."""

    run: TrainingRun
    """What was done."""
    log: Sequence[LogLine]
    """A line an optimizer step."""
    folder: Path
    """The checkpoint: transformers and vLLM load it as it is."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"folder": str(self.folder), **training_dict(self.run), "last_step": dict(self.log[-1])}


def search(*, config: Path | None = None, progress: Progress | None = None, **settings: Any) -> Findings:
    """Search the context that flips most unsafe rollouts under the over-refusal cap, and write its report.

    Settings are the fields of StudyConfig; `config` is a TOML file of them. The same settings again continue or, once
    finished, return the same study. Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.searching.plan import plan_study
    from flipsearch.searching.study import run_study

    checked = _resolved(make_config(StudyConfig, read_toml(config) if config else {}, settings))
    library = load_library(checked.contexts)
    prompts = _prompts(checked)
    plan = plan_study(checked, library, prompts.prompts)
    _check_best(checked.best)
    with _Desk(checked, "search", prompts, progress, checked.study_name()) as desk:
        study = run_study(plan, desk.bench)
        return desk.finish(study, checked.best if study.winner else None)


def score(
    context: str | Sequence[str], *, config: Path | None = None, progress: Progress | None = None, **settings: Any
) -> Findings:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    Settings are the fields of ScoreConfig.
    """
    from flipsearch.searching.scoring import run_score

    checked = _resolved(make_config(ScoreConfig, read_toml(config) if config else {}, settings))
    texts = [context] if isinstance(context, str) else context
    contexts = given_contexts(texts, load_library(checked.contexts), checked.placement)
    ids = sorted(context.context_id for context in contexts)
    name = checked.study_name(ids)
    prompts = _prompts(checked)
    with _Desk(checked, f"score {' '.join(ids)}", prompts, progress, name) as desk:
        return desk.finish(run_score(checked, desk.bench, contexts, prompts.prompts, name), None)


def train(*, config: Path | None = None, progress: Progress | None = None, **settings: Any) -> Trained:
    """Train a model towards what it does under a context, and write the checkpoint.

    Settings are the fields of TrainConfig. A context card (best.json, or the one beside best.txt) says which model and
    prompts it is for; what is given here wins. Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.training.checkpoint import Workplace
    from flipsearch.training.log import LOG_FILE, read_log
    from flipsearch.training.plan import LEDGER_FOLDER, plan_training, with_model_defaults
    from flipsearch.training.run import run_training

    given = {k: v for k, v in {**(read_toml(config) if config else {}), **settings}.items() if v is not None}
    if isinstance(given.get("context"), str):
        given["context"] = [given["context"]]
    if not given.get("context"):
        raise ConfigError("no context given; train needs --context best.txt, a card, a text or the name of a template.")
    if not isinstance(given["context"], list | tuple) or not all(isinstance(one, str) for one in given["context"]):
        raise ConfigError(f"context = {given['context']!r}: expected a text or a list of texts.")
    cards = [card for one in given["context"] if (card := given_card(one))]
    checked = with_model_defaults(make_config(TrainConfig, _of_card(cards, given), given), tuple(given))
    checked = _resolved(checked)
    _check_cards(cards, checked.model)
    contexts, benign_context = _contexts_to_train(checked)
    plan = plan_training(checked, contexts, benign_context, _prompts(checked))
    judge, place = load_judge(checked.judge), Workplace(plan.folder)
    place.check(checked.resume)
    with Ledger(checked.reports / LEDGER_FOLDER / LEDGER_FILE) if plan.asks_judge else nullcontext() as ledger:
        run = run_training(plan, judge, ledger, place, progress)
    log = read_log(place.partial / LOG_FILE)
    write_training(run, log, place.final)
    place.publish()
    return Trained(run, log, place.folder)


def evaluate(*, config: Path | None = None, progress: Progress | None = None, **settings: Any) -> Evaluated:
    """Measure a model and the one it was made from on the same prompts and problems, and write the scorecard.

    Settings are the fields of EvalConfig: `model` is evaluated, `against` is the base. The same settings again continue
    or, once finished, generate nothing. Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.evaluation.plan import plan_evaluation
    from flipsearch.evaluation.run import run_evaluation

    checked = _resolved(make_config(EvalConfig, read_toml(config) if config else {}, settings))
    plan = plan_evaluation(checked, _prompts(checked))
    judge = load_judge(checked.judge)
    is_checkpoint = (plan.path.parent / registry.TRAINING_FILE).is_file()
    training = read_training(plan.path.parent) if is_checkpoint else None
    with _kept_on_success(plan.folder) as ledger:
        backend = registry.make_backend(plan.config)
    with ledger:
        card = run_evaluation(plan, judge, ledger, backend, progress)
    write_scorecard(card, plan.path)
    if training:
        write_model_card(training, card, plan.path.parent)
    return Evaluated(card, plan.path)


def report(study: Path | str, *, reports: Path | None = None) -> Findings:
    """Write a finished study's files again, from the study alone; nothing is generated or judged."""
    folder = Path(study)
    if not folder.is_dir():
        folder = (reports or StudyConfig().reports) / study
    if not folder.is_dir():
        known = [p.name for p in folder.parent.glob("*") if p.is_dir()] if folder.parent.is_dir() else []
        raise StudyError(unknown_name("study", str(study), known))
    found = read_study(folder)
    write_study(found, folder)
    return Findings(found, folder, folder / "best.txt" if found.winner else None)


def list_things(what: str, contexts: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return rows of name and description for models, contexts, judges, prompts, problems or backends."""
    tables = {
        "models": registry.list_models,
        "contexts": lambda: load_library(contexts).descriptions(),
        "judges": list_judges,
        "prompts": lambda: {
            name: ", ".join(f"{count} {kind}" for kind, count in counts.items()) for name, counts in list_sets().items()
        },
        "problems": lambda: {name: f"{count} problems" for name, count in list_problem_sets().items()},
        "backends": registry.list_backends,
    }
    if what not in tables:
        raise ConfigError(unknown_name("list", what, tables))
    return [{"name": name, "description": text} for name, text in tables[what]().items()]


class _Desk:
    """What a study works with: judge, folder, ledger and model, opened in this order, the costly one last.

    Whatever fails leaves the folders as they were.
    """

    def __init__(
        self, config: ReportConfig, command: str, prompts: PromptSet, progress: Progress | None, name: str
    ) -> None:
        self.folder, self.prompts = config.reports / name, prompts
        judge = load_judge(config.judge)
        registry.check_model(config)
        with _kept_on_success(self.folder) as self.ledger:
            self._same("command", command, "another command or other contexts")
            self._same("prompts", prompts.prompts_id, "other prompts")
            _write_settings(self.folder, config)
            backend = registry.make_backend(config)
            with _closed_on_failure(backend):
                self._same("model", backend.model_id, "another model, precision or chat template")
        self.bench = Bench(backend, judge, self.ledger, config.sampling(), progress)

    def __enter__(self) -> "_Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.backend.close()
        self.ledger.close()

    def finish(self, study: Study, best: Path | None) -> Findings:
        """Write the files of a finished study, with what the prompts' files gave to note."""
        settings = {**study.settings, "prompts_id": self.prompts.prompts_id}
        study = replace(study, settings=settings, notes=(*self.prompts.notes, *study.notes))
        write_study(study, self.folder)
        if best:
            write_best(study, best)
        return Findings(study, self.folder, best)

    def _same(self, key: str, value: str, what: str) -> None:
        """Note what the study is on, once; a study on something else needs another name."""
        if self.ledger.note(key, value).value != value:
            name = self.folder.name
            raise StudyError(f"study '{name}' was started with {what}; give another --study name.")


@contextmanager
def _closed_on_failure(backend: Backend) -> Iterator[None]:
    """Close the backend if the block fails."""
    try:
        yield
    except BaseException:
        backend.close()
        raise


@contextmanager
def _kept_on_success(folder: Path) -> Iterator[Ledger]:
    """Open the ledger of a folder and leave it open; if the block fails, close it and remove the folders made for it.

    Nothing is removed if the ledger cannot be opened: then it is another process that works there.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        ledger = Ledger(folder / LEDGER_FILE)
    except BaseException:
        _remove_empty(missing)
        raise
    try:
        yield ledger
    except BaseException:
        ledger.close()
        for path in missing[:1]:
            shutil.rmtree(path, ignore_errors=True)
        _remove_empty(missing[1:])
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def _resolved(config: Checked) -> Checked:
    """Fill in the defaults that hang on the model, so that what is written down is what was done."""
    prompts = config.prompts
    if prompts is None and not config.harmful and not config.benign:
        prompts = registry.default_prompts(config.model)
    max_tokens = config.max_tokens or registry.default_max_tokens(config.model)
    return config.model_copy(update={"prompts": prompts, "max_tokens": max_tokens})


def _of_card(cards: Sequence[Card], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the first card stands for, those given apart."""
    if not cards or cards[0].model is None:
        return {}
    card = cards[0]
    found: dict[str, Any] = {"model": card.model}
    if given.get("model", card.model) == card.model:
        found |= {"thinking": card.sampling.thinking, "max_tokens": card.sampling.max_tokens}
    if not given.keys() & {"prompts", "harmful", "benign"}:
        found |= card.prompts.model_dump()
    return found


def _check_cards(cards: Sequence[Card], model: str) -> None:
    """Refuse a card that was found for another model: a flip rate holds for one model."""
    for card in cards:
        if card.model is not None and card.model != model:
            raise ConfigError(
                f"the context's card says that it was found for '{card.model}', but the model is '{model}'. "
                "Search with that model, or give the text alone, in a file without a card beside it."
            )


def _contexts_to_train(config: TrainConfig) -> tuple[list[Context], Context | None]:
    library = load_library(config.contexts)
    contexts = given_contexts(config.context, library)
    if config.control:
        contexts = [control_context(library, config.control, contexts[0])]
    benign = given_contexts([config.benign_context], library)[0] if config.benign_context else None
    return contexts, benign


def _prompts(config: ModelConfig) -> PromptSet:
    return load_prompts(config.prompts, harmful=config.harmful, benign=config.benign)


def _write_settings(folder: Path, config: ReportConfig) -> None:
    """Write study.toml, or check that the folder holds a study of the same settings."""
    path = folder / SETTINGS_FILE
    if path.exists():
        before, now = read_toml(path), config.model_dump(mode="json", exclude_none=True)
        for key in sorted((set(now) | set(before)) - config.free_fields()):
            if before.get(key) != now.get(key):
                raise StudyError(
                    f"study '{folder.name}' was started with {key} = {before.get(key)!r}, got {now.get(key)!r}; "
                    "give the same settings to continue it, or another --study name."
                )
    write_text(path, toml_text(config))


def _check_best(path: Path) -> None:
    """Refuse a place for the winning text that could not be written, or that its card would overwrite."""
    if path.suffix == ".json" or path.is_dir() or not path.name:
        raise ConfigError(f"--best is '{path}', expected a text file such as best.txt; its card goes to best.json.")
    if path.parent.exists() and not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--best is '{path}', but its folder cannot be written; choose another.")
