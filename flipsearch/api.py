"""The library's front door, a function a command: search, plan, score, train, … The command line calls nothing else.

    settings --check--> names, prompts, judge, folder --load--> backend --search--> Study --write--> files

Everything that can be wrong with the input is found before the model is loaded.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flipsearch import registry
from flipsearch.bench import Progress
from flipsearch.config import TRAININGS, EvalConfig, ScoreConfig, StudyConfig, make_config, read_toml
from flipsearch.desk import (
    LEDGER_FILE,
    Desk,
    kept_on_success,
    ledger_place,
    mean_length,
    study_folder,
    with_what_people_say,
)
from flipsearch.errors import ConfigError, unknown_name
from flipsearch.judge_api import check_judge as check_judge
from flipsearch.judge_api import fit_judge as fit_judge
from flipsearch.judge_api import label_answers as label_answers
from flipsearch.judging.contract import ask_identities
from flipsearch.judging.library import closed_after, list_judges, load_judge, share_left
from flipsearch.ledger import Ledger
from flipsearch.ledger.check import LedgerCheck
from flipsearch.ledger.check import check_ledger as check
from flipsearch.prompts.problems import list_problem_sets
from flipsearch.prompts.sets import PromptSet, list_sets, prompts_of
from flipsearch.registry import Checked
from flipsearch.reporting.files import check_best, read_study, write_study
from flipsearch.reporting.rollout_table import Export, check_export, export_file, export_lines
from flipsearch.reporting.scorecard import write_scorecard
from flipsearch.reporting.training_files import read_training, write_model_card, write_training
from flipsearch.results import Evaluated, Findings, Trained
from flipsearch.templating.given import given_contexts
from flipsearch.templating.library import load_library

if TYPE_CHECKING:
    from flipsearch.searching.forecast import Forecast
    from flipsearch.searching.plan import Plan


def search(
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    announce: "Callable[[Forecast], None] | None" = None,
    **settings: Any,
) -> Findings:
    """Search the context that flips most unsafe rollouts under the over-refusal cap, and write its report.

    Settings are the fields of StudyConfig; `config` is a TOML file of them. The same settings again continue or, once
    finished, return the same study. `announce` is given the plan before the first rollout.
    Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.searching.budget import Budget
    from flipsearch.searching.forecast import forecast
    from flipsearch.searching.storage import write_storage
    from flipsearch.searching.study import run_study

    planned, prompts = _planned(config, settings)
    checked, budget = planned.config, Budget(planned)
    check_best(checked.best)
    with Desk(checked, "search", prompts, progress, checked.study_name(), checked.rewriter_config()) as desk:
        told = forecast(planned, mean_length=desk.ledger.mean_length())
        desk.launch(plan=told.as_dict())
        if announce:
            announce(told)
        study = run_study(planned, desk.bench, budget, desk.rewriter, desk.others)
        write_storage(study, planned.space, desk.folder)
        return desk.finish(study, checked.best if study.winner else None)


def plan(*, config: Path | None = None, delta: float = 0.05, power: float = 0.8, **settings: Any) -> "Forecast":
    """Return what a search would take (prompts, rollouts, tokens) and tell (which difference), without a model.

    Settings are those of `search`. `delta` is the difference of flip rates that the confirm split should find with
    probability `power`. The length of a completion is taken from the study's ledger, if there is one.
    """
    from flipsearch.searching.budget import Budget
    from flipsearch.searching.forecast import forecast

    planned, _ = _planned(config, settings)
    Budget(planned)
    registry.check_model(planned.config)
    if rewriter := planned.config.rewriter_config():
        registry.check_rewriter(rewriter)
    for judge in (planned.config.judge, planned.config.confirm_judge, *planned.config.second_judges):
        if judge:
            load_judge(judge)
    length = mean_length(planned.config.reports / planned.config.study_name())
    return forecast(planned, mean_length=length, delta=delta, power=power)


def score(
    context: str | Sequence[str], *, config: Path | None = None, progress: Progress | None = None, **settings: Any
) -> Findings:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    Settings are the fields of ScoreConfig.
    """
    from flipsearch.searching.scoring import run_score

    checked = _checked(ScoreConfig, config, settings)
    texts = [context] if isinstance(context, str) else context
    contexts = given_contexts(texts, load_library(checked.contexts), checked.placement)
    ids = sorted(context.context_id for context in contexts)
    name = checked.study_name(ids)
    prompts = prompts_of(checked)
    with Desk(checked, f"score {' '.join(ids)}", prompts, progress, name) as desk:
        desk.launch()
        return desk.finish(run_score(checked, desk.bench, contexts, prompts.prompts, name, desk.others.second), None)


def train(*, config: Path | None = None, progress: Progress | None = None, **settings: Any) -> Trained:
    """Train a model towards what it does under a context, and write the checkpoint.

    Settings are the fields of TrainConfig. A context card (best.json, or the one beside best.txt) says which model and
    prompts it is for; what is given here wins. Raises FlipsearchError in one line for anything that cannot be used.
    """
    from flipsearch.training.checkpoint import Workplace
    from flipsearch.training.inputs import train_inputs
    from flipsearch.training.plan import plan_training
    from flipsearch.training.processes import is_first
    from flipsearch.training.run import run_training

    inputs = train_inputs(_settings_of(config), settings)
    plan = plan_training(inputs, prompts_of(inputs.config))
    judge, place = load_judge(plan.config.judge), Workplace(plan.folder)
    if is_first():
        place.check(plan.config.resume)
        ask_identities(judge if plan.asks_judge else None)
    ledger_path = plan.config.reports / TRAININGS / LEDGER_FILE
    with closed_after(judge), place, Ledger(ledger_path) if plan.asks_judge and is_first() else nullcontext() as ledger:
        run, log = run_training(plan, judge, ledger, place, progress)
        if is_first():
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

    checked = _checked(EvalConfig, config, settings)
    plan = plan_evaluation(checked, prompts_of(checked))
    judge = load_judge(checked.judge)
    is_checkpoint = (plan.path.parent / registry.TRAINING_FILE).is_file()
    training = read_training(plan.path.parent) if is_checkpoint else None
    ask_identities(judge)
    with kept_on_success(plan.folder) as ledger:
        backend = registry.make_backend(plan.config, memory_share=share_left(judge))
    with ledger, closed_after(judge):
        card = run_evaluation(plan, judge, ledger, backend, progress)
    write_scorecard(card, plan.path)
    if training:
        write_model_card(training, card, plan.path.parent)
    return Evaluated(card, plan.path)


def report(study: Path | str, *, reports: Path | None = None) -> Findings:
    """Write a finished study's files again, with what is known of its judge by now; nothing is generated or judged."""
    folder = study_folder(study, reports)
    found = with_what_people_say(read_study(folder), folder)
    write_study(found, folder)
    return Findings(found, folder, folder / "best.txt" if found.winner else None)


def check_ledger(study: Path | str, *, reports: Path | None = None) -> LedgerCheck:
    """Read the ledger of a study and return what it holds and what is wrong with it; nothing is written.

    `study` is a study's name or folder, or a ledger's file or database URL.
    """
    return check(ledger_place(study, reports))


def export_ledger(
    study: Path | str, *, to: Path | str | None = None, reports: Path | None = None, stream: TextIO | None = None
) -> Export:
    """Write all rollouts of a study with their verdicts to a .jsonl, .csv or .parquet file, or as lines to `stream`.

    Without either, the lines go to stdout.
    """
    if to is not None:
        check_export(Path(to))
    with Ledger(ledger_place(study, reports), read_only=True) as ledger:
        return export_file(ledger, Path(to)) if to is not None else export_lines(ledger, stream or sys.stdout)


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


def _planned(config: Path | None, settings: Mapping[str, Any]) -> "tuple[Plan, PromptSet]":
    from flipsearch.searching.plan import plan_study

    checked = _checked(StudyConfig, config, settings)
    library, prompts = load_library(checked.contexts), prompts_of(checked)
    return plan_study(checked, library, prompts.prompts), prompts


def _checked(kind: type[Checked], file: Path | None, settings: Mapping[str, Any]) -> Checked:
    return registry.resolve(make_config(kind, _settings_of(file), settings))


def _settings_of(file: Path | None) -> dict[str, Any]:
    return read_toml(file) if file else {}
