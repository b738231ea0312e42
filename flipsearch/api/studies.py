"""he library's front door, a function a command: search, plan, score, train, … The command line calls nothing else.

    settings --check--> names, prompts, judge, folder --load--> backend --search--> Study --write--> files

Everything that can be wrong with the input is found before the model is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flipsearch.api.settings import checked
from flipsearch.backends.base import check_model, check_rewriter
from flipsearch.config import ScoreConfig, StudyConfig
from flipsearch.core.progress import Progress
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import PromptSet, prompts_of
from flipsearch.reporting.files import check_best, read_study, write_study
from flipsearch.results import SearchResult
from flipsearch.searching.budget import Budget
from flipsearch.searching.plan import SearchPlan, plan_search
from flipsearch.searching.score import run_score
from flipsearch.searching.setup import SearchSetup, prepare_search
from flipsearch.searching.storage import write_storage
from flipsearch.searching.study import run_study
from flipsearch.templating.given import given_contexts
from flipsearch.templating.library import load_library
from flipsearch.workspace import (
    Workspace,
    mean_length,
    study_folder,
    with_human_labels,
)


def search(
    *,
    config: Path | None = None,
    progress: Progress | None = None,
    on_plan: "Callable[[SearchPlan], None] | None" = None,
    **settings: Any,
) -> SearchResult:
    """Search the context that flips most unsafe rollouts under the over-refusal cap, and write its report.

    Settings are the fields of StudyConfig; `config` is a TOML file of them. The same settings again continue or, once
    finished, return the same study. `announce` is given the plan before the first rollout.
    Raises FlipsearchError in one line for anything that cannot be used.
    """
    planned, prompts = _planned(config, settings)
    checked, budget = planned.config, Budget(planned)
    check_best(checked.best)
    with Workspace(checked, "search", prompts, progress, checked.study_name(), checked.rewriter_config()) as workspace:
        told = plan_search(planned, mean_length=workspace.ledger.mean_length())
        workspace.launch(plan=told.as_dict())
        if on_plan:
            on_plan(told)
        study = run_study(planned, workspace.runner, budget, workspace.rewriter, workspace.others)
        write_storage(study, planned.space, workspace.folder)
        return workspace.finish(study, checked.best if study.winner else None)


def plan(*, config: Path | None = None, delta: float = 0.05, power: float = 0.8, **settings: Any) -> "SearchPlan":
    """Return what a search would take (prompts, rollouts, tokens) and tell (which difference), without a model.

    Settings are those of `search`. `delta` is the difference of flip rates that the confirm split should find with
    probability `power`. The length of a completion is taken from the study's ledger, if there is one.
    """
    planned, _ = _planned(config, settings)
    Budget(planned)
    check_model(planned.config)
    if rewriter := planned.config.rewriter_config():
        check_rewriter(rewriter)
    for judge in (planned.config.judge, planned.config.confirm_judge, *planned.config.second_judges):
        if judge:
            load_judge(judge)
    length = mean_length(planned.config.reports / planned.config.study_name())
    return plan_search(planned, mean_length=length, delta=delta, power=power)


def score(
    context: str | Sequence[str], *, config: Path | None = None, progress: Progress | None = None, **settings: Any
) -> SearchResult:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    Settings are the fields of ScoreConfig.
    """
    given = checked(ScoreConfig, config, settings)
    texts = [context] if isinstance(context, str) else context
    contexts = given_contexts(texts, load_library(given.contexts), given.placement)
    ids = sorted(context.context_id for context in contexts)
    name = given.study_name(ids)
    prompts = prompts_of(given)
    with Workspace(given, f"score {' '.join(ids)}", prompts, progress, name) as workspace:
        workspace.launch()
        return workspace.finish(
            run_score(given, workspace.runner, contexts, prompts.prompts, name, workspace.others.second), None
        )


def report(study: Path | str, *, reports: Path | None = None) -> SearchResult:
    """Write a finished study's files again, with what is known of its judge by now; nothing is generated or judged."""
    folder = study_folder(study, reports)
    found = with_human_labels(read_study(folder), folder)
    write_study(found, folder)
    return SearchResult(found, folder, folder / "best.txt" if found.winner else None)


def _planned(config: Path | None, settings: Mapping[str, Any]) -> "tuple[SearchSetup, PromptSet]":

    given = checked(StudyConfig, config, settings)
    library, prompts = load_library(given.contexts), prompts_of(given)
    return prepare_search(given, library, prompts.prompts), prompts
