"""The library's front door: search, score, report, list_things. The command line calls nothing else.

    settings --check--> names, prompts, judge, folder --load--> backend --search--> Study --write--> files

Everything that can be wrong with the input is found before the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flipsearch import registry
from flipsearch.config import ModelConfig, ScoreConfig, StudyConfig, make_config, read_toml, toml_text
from flipsearch.errors import ConfigError, StudyError, unknown_name
from flipsearch.judging.library import list_judges, load_judge
from flipsearch.ledger import Ledger
from flipsearch.measure import Bench, Progress
from flipsearch.prompts.sets import PromptSet, list_sets, load_prompts
from flipsearch.records import Study, Trial
from flipsearch.reporting.card import context_card
from flipsearch.reporting.files import read_study, write_best, write_study, write_text
from flipsearch.reporting.leaderboard import leaderboard
from flipsearch.templating.given import given_contexts
from flipsearch.templating.library import load_library

if TYPE_CHECKING:
    import pandas as pd

SETTINGS_FILE, LEDGER_FILE = "study.toml", "ledger.db"


@dataclass(frozen=True)
class Outcome:
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
    def beats_placebo(self) -> bool:
        """Whether there is a winner whose net flip rate is above 0 with its whole interval."""
        winner = self.study.winner
        return winner is not None and (winner.net is None or winner.net.low > 0)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = self.leaderboard.astype(object).where(self.leaderboard.notna(), None)
        return {
            "study": self.study.name,
            "folder": str(self.folder),
            "best_path": str(self.best_path) if self.best_path else None,
            "best": context_card(self.study, self.study.winner) if self.study.winner else None,
            "beats_placebo": self.beats_placebo,
            "num_rollouts": self.study.num_rollouts,
            "num_tokens": self.study.num_tokens,
            "notes": list(self.study.notes),
            "leaderboard": rows.to_dict("records"),
        }


def search(*, config: Path | None = None, progress: Progress | None = None, **settings: Any) -> Outcome:
    """Search the context that flips most unsafe rollouts under the over-refusal cap, and write its report.

    Settings are the fields of StudyConfig; `config` is a TOML file of them. The same settings again continue or, once
    finished, return the same study. Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.searching.plan import plan_study
    from flipsearch.searching.study import run_study

    checked = make_config(StudyConfig, read_toml(config) if config else {}, settings)
    library = load_library(checked.contexts)
    prompts = _prompts(checked)
    plan = plan_study(checked, library, prompts.prompts)
    with _Desk(checked, checked.study_name(), prompts, progress) as desk:
        study = run_study(plan, desk.bench)
        return desk.finish(study, checked.best if study.winner else None)


def score(
    context: str | Sequence[str], *, config: Path | None = None, progress: Progress | None = None, **settings: Any
) -> Outcome:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    Settings are the fields of ScoreConfig.
    """
    from flipsearch.searching.scoring import run_score

    checked = make_config(ScoreConfig, read_toml(config) if config else {}, settings)
    texts = [context] if isinstance(context, str) else context
    contexts = given_contexts(texts, load_library(checked.contexts), checked.placement)
    name = checked.study_name([context.context_id for context in contexts])
    prompts = _prompts(checked)
    with _Desk(checked, name, prompts, progress) as desk:
        return desk.finish(run_score(checked, desk.bench, contexts, prompts.prompts, name), None)


def report(study: Path | str, *, reports: Path | None = None) -> Outcome:
    """Write a finished study's files again, from the study alone; nothing is generated or judged."""
    folder = Path(study)
    if not folder.is_dir():
        folder = (reports or StudyConfig().reports) / study
    if not folder.is_dir():
        known = [p.name for p in folder.parent.glob("*") if p.is_dir()] if folder.parent.is_dir() else []
        raise StudyError(unknown_name("study", str(study), known))
    found = read_study(folder)
    write_study(found, folder)
    return Outcome(found, folder, folder / "best.txt" if found.winner else None)


def list_things(what: str, contexts: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return rows of name and description for models, contexts, judges, prompts or backends."""
    tables = {
        "models": registry.list_models,
        "contexts": lambda: load_library(contexts).descriptions(),
        "judges": list_judges,
        "prompts": lambda: {
            name: ", ".join(f"{count} {kind}" for kind, count in counts.items()) for name, counts in list_sets().items()
        },
        "backends": registry.list_backends,
    }
    if what not in tables:
        raise ConfigError(unknown_name("list", what, tables))
    return [{"name": name, "description": text} for name, text in tables[what]().items()]


class _Desk:
    """What a study works with: judge, folder, ledger and model, opened in this order, the costly one last."""

    def __init__(self, config: ModelConfig, name: str, prompts: PromptSet, progress: Progress | None) -> None:
        self.folder, self.prompts = config.reports / name, prompts
        judge = load_judge(config.judge)
        registry.check_model(config)
        _claim(self.folder, config)
        self.ledger = Ledger(self.folder / LEDGER_FILE)
        try:
            _same_prompts(self.ledger, prompts, name)
            backend = registry.make_backend(config)
        except BaseException:
            self.ledger.close()
            raise
        self.bench = Bench(backend, judge, self.ledger, config.sampling(), progress)

    def __enter__(self) -> "_Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def finish(self, study: Study, best: Path | None) -> Outcome:
        """Write the files of a finished study, with what the prompts' files gave to note."""
        study = replace(study, notes=(*self.prompts.notes, *study.notes))
        write_study(study, self.folder)
        if best:
            write_best(study, best)
        return Outcome(study, self.folder, best)


def _prompts(config: ModelConfig) -> PromptSet:
    name = config.prompts
    if name is None and not config.harmful and not config.benign:
        name = registry.default_prompts(config.model)
    return load_prompts(name, harmful=config.harmful, benign=config.benign)


def _same_prompts(ledger: Ledger, prompts: PromptSet, name: str) -> None:
    """Note which prompts the study is on; a file that has changed since is another study."""
    if ledger.note("prompts", prompts.prompts_id).value != prompts.prompts_id:
        raise StudyError(f"the prompts of study '{name}' have changed since it was started; give another --study name.")


def _claim(folder: Path, config: ModelConfig) -> None:
    """Write study.toml, or check that the folder holds a study of the same settings."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        write_text(path, toml_text(config))
        return
    before = read_toml(path)
    now = config.model_dump(mode="json")
    for key in sorted(set(now) - config.free_fields()):
        if before.get(key) != now[key] and (before.get(key) or now[key]):
            raise StudyError(
                f"study '{folder.name}' was started with {key} = {before.get(key)!r}, got {now[key]!r}; "
                "give the same settings to continue it, or another --study name."
            )
    write_text(path, toml_text(config))
