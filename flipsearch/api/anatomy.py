"""anatomy: where in its answers a context changes a model, before a training and after it."""

from pathlib import Path

from flipsearch.api.settings import Given, takes, with_card
from flipsearch.config import ANATOMIES, AnatomyConfig
from flipsearch.core.errors import ConfigError, PromptError
from flipsearch.core.progress import Progress
from flipsearch.defaults import library_for, resolve
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import prompts_of, prompts_of_split
from flipsearch.reporting.anatomy_page import write_anatomy
from flipsearch.results import AnatomyResult
from flipsearch.templating.library import given_contexts
from flipsearch.training.anatomy import AnatomyPlan, check_anatomy, run_anatomy
from flipsearch.workspace import Workspace


@takes(AnatomyConfig)
def anatomy(given: Given[AnatomyConfig], *, progress: Progress | None = None) -> AnatomyResult:
    """Measure where in its answers a context changes a model, and what a training on it left of that.

    A card says which model and prompts it is for; what is given here wins. The same settings again generate nothing.
    Raises FlipsearchError in one line for anything that cannot be used.
    """
    plan = _plan(given)
    judge = load_judge(plan.config.judge)
    check_identities(judge)
    short = Path(plan.config.model).name.split("@")[0].lower()
    folder = plan.config.reports / ANATOMIES
    place = folder / f"{short}-{plan.identity[:6]}"
    with Workspace(folder, judge) as workspace:
        measured = run_anatomy(plan, judge, workspace.ledger, folder, progress)
    write_anatomy(measured, place)
    return AnatomyResult(measured, place)


def _plan(given: Given[AnatomyConfig]) -> AnatomyPlan:
    named = {**given.file, **given.keywords}.get("context")
    config = resolve(with_card(given, [str(named)] if named else []).config())
    check_anatomy(config)
    contexts = given_contexts([config.context], library_for(config.model, config.contexts), config.placement)
    if len(contexts) > 1:
        raise ConfigError(f"--context '{config.context}' holds {len(contexts)} contexts; give one of them.")
    prompts = prompts_of(config)
    chosen = prompts_of_split(prompts, config.split, config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in chosen):
        raise PromptError(f"no harmful prompt of '{prompts.name}' in split {config.split}; see --split and --harmful.")
    return AnatomyPlan(config, contexts[0], chosen, prompts.notes_beside_groups)
