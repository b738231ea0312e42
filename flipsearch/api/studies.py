"""search and plan: contexts, their flip rates and their leaderboard.

    settings --check--> prompts, judges, folder --load--> models --search--> Study --write--> files

Everything that can be wrong with the input is found before a model is loaded. A search that was finished with the same
inputs before is returned, and loads no model.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flipsearch.backends.base import check_model, check_rewriter, model_identity
from flipsearch.backends.loading import known_sampling
from flipsearch.config import ModelConfig, SearchConfig, is_endpoint
from flipsearch.core.errors import ConfigError, NothingToFlipError, PoorCoverageError, StudyError
from flipsearch.core.files import RESULT_PACKAGES, package_versions
from flipsearch.core.progress import Progress
from flipsearch.core.records import Context, content_id
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.prompts.attacks import attacked_prompts
from flipsearch.prompts.sets import PromptSet, prompts_of
from flipsearch.reporting.files import check_best, read_study
from flipsearch.reporting.study_file import LEDGER_FILE, STUDY_FILE, study_folder
from flipsearch.results import SearchResult
from flipsearch.searching import (
    START,
    Budget,
    SearchPlan,
    SearchSetup,
    plan_search,
    prepare_search,
    run_study,
    write_storage,
)
from flipsearch.settings import Given, library_for, takes
from flipsearch.templating.library import FILE_ENDINGS, TemplateLibrary, given_contexts
from flipsearch.workspace import known_length_and_speed, length_and_speed, study_session, write_result


def search_inputs(given: Given[SearchConfig]) -> tuple[SearchSetup, PromptSet]:
    """Return the checked settings of a search with its contexts, and its prompts."""
    config = given.config()
    library = library_for(config.model, config.contexts)
    prompts = prompts_of(config)
    if config.attacks:
        prompts = attacked_prompts(prompts, config.attacks, config, config.attack_score)
    setup = prepare_search(config, library, prompts.prompts)
    return replace(setup, start=_start(config, library)), prompts


def _start(config: SearchConfig, library: TemplateLibrary) -> tuple[Context, ...]:
    """Return the contexts of `--start`, each with where it came from: a card's, or a study's winner and finalists."""
    contexts: dict[str, Context] = {}
    for given in config.start:
        if given.endswith(FILE_ENDINGS):
            source, chosen = Path(given).name, given_contexts([given], library)
        else:
            study = read_study(study_folder(given, config.reports))
            arms = [trial for trial in study.trials if trial.role == "arm"]
            if not arms:
                raise ConfigError(f"--start: the study '{given}' holds no contexts but placebos; give another one.")
            finalists = [trial for trial in arms if trial.confirm]
            source, chosen = study.name, [trial.context for trial in finalists or arms[:1]]
        for context in chosen:
            made = Context(context.text, context.placement, params=(("from", source),), operator=START)
            contexts.setdefault(made.context_id, made)
    return tuple(contexts.values())


def inputs_key(setup: SearchSetup, prompts: PromptSet) -> str | None:
    """Return the ledger's note that a search of these inputs was finished; None where running it again continues it.

    That is so with a limit of time; and an endpoint is probed each time. Nothing is loaded.
    """
    config = setup.config
    if config.time_s is not None or config.backend not in ("transformers", "vllm") or is_endpoint(config.model):
        return None
    settings = config.model_dump(mode="json", exclude=ModelConfig.changeable_fields() | {"study", "best"})
    judges = [load_judge(name) for name in (config.judge, config.confirm_judge, *config.second_judges) if name]
    check_identities(*judges)
    models = [config, *filter(None, [config.rewriter_config()])]
    if any(is_endpoint(model.model) for model in models):
        return None
    library = library_for(config.model, config.contexts)
    templates = [library[name] for role in ("context", "benign", "placebo") for name in library.names(role)]
    texts = [(text.name, text.body, repr(text.params), text.placements) for text in templates]
    started = [(context.text, context.placement) for context in setup.start]
    identities = [prompts.prompts_id, *(judge.identity for judge in judges), *map(model_identity, models)]
    return f"finished {content_id(settings, identities, texts, started, package_versions(RESULT_PACKAGES))}"


def finished_study(setup: SearchSetup, prompts: PromptSet) -> SearchResult | None:
    """Return the study of these inputs if it is finished already: no model is loaded for it."""
    config = setup.config
    folder = config.reports / config.study_name()
    if not ((folder / STUDY_FILE).is_file() and (folder / LEDGER_FILE).is_file()):
        return None
    check_model(config)
    key = inputs_key(setup, prompts)
    with Ledger(folder / LEDGER_FILE, read_only=True) as ledger:
        if key not in ledger.notes():
            return None
        with suppress(StudyError):  # of another version: it is made again
            return replace(write_result(read_study(folder), folder, config.best, ledger), was_finished=True)
    return None


@takes(SearchConfig)
def search(
    given: Given[SearchConfig], *, progress: Progress | None = None, on_plan: Callable[[SearchPlan], None] | None = None
) -> SearchResult:
    """Find the context that flips the most unsafe rollouts under the over-refusal cap, and write its report.

    The same settings again continue the study or, once it is finished, return it. `config` is a TOML file of settings;
    keywords win over it. `on_plan` is called with the plan before the first rollout. Raises FlipsearchError in one line
    for anything that cannot be used.
    """
    setup, prompts = search_inputs(given)
    config, budget = setup.config, Budget(setup)
    check_best(config.best)
    if finished := finished_study(setup, prompts):
        return finished

    def show_plan(ledger: Ledger) -> None:
        length, speed = length_and_speed(ledger)
        if on_plan:
            on_plan(plan_search(setup, mean_length=length, tokens_per_s=speed, sampling=known_sampling(config)))

    name, rewriter = config.study_name(), config.rewriter_config()
    with study_session(config, "search", prompts, name, progress, rewriter, show_plan) as session:
        length, speed = length_and_speed(session.workspace.ledger)
        plan = plan_search(setup, mean_length=length, tokens_per_s=speed, sampling=session.runner.sampling)
        session.log_start(plan=plan.as_dict())
        try:
            on_rung = session.unfinished_writer()
            study = run_study(setup, session.runner, budget, session.rewriter, session.others, on_rung)
        except (NothingToFlipError, PoorCoverageError) as error:
            if config.best.is_file():
                raise type(error)(f"{error} '{config.best}' of an earlier search is left as it was.") from None
            raise
        write_storage(study, setup.space, session.workspace.folder)
        result = session.finish(study, config.best)
        if not session.runner.to_repeat and (key := inputs_key(setup, prompts)):
            session.workspace.ledger.note(key, "")
        return result


@takes(SearchConfig)
def plan(
    given: Given[SearchConfig], *, delta: float = 0.05, power: float = 0.8, tokens_per_second: float | None = None
) -> SearchPlan:
    """Return what a search costs (prompts, rollouts, tokens, time) and which differences it can detect; loads no model.

    `delta` is the difference of flip rates that the confirm split should detect with probability `power`. The length
    of a completion, and the speed if it is not given, are taken from the study's ledger, if there is one.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < math.inf:
        raise ConfigError(f"--tokens-per-second is {tokens_per_second:g}, expected a number above 0.")
    setup, _ = search_inputs(given)
    config = setup.config
    Budget(setup)
    check_model(config)
    if rewriter := config.rewriter_config():
        check_rewriter(rewriter)
    for judge in filter(None, (config.judge, config.confirm_judge, *config.second_judges)):
        load_judge(judge)
    length, speed = known_length_and_speed(config.reports / config.study_name())
    speed, sampling = tokens_per_second or speed, known_sampling(config)
    return plan_search(setup, mean_length=length, tokens_per_s=speed, sampling=sampling, delta=delta, power=power)
