"""What a search is made from; one that was finished before with the same inputs is returned, and loads no model."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flipsearch.api.settings import Given
from flipsearch.backends.base import check_model, model_identity
from flipsearch.config import ModelConfig, SearchConfig, is_endpoint
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.files import RESULT_PACKAGES, package_versions
from flipsearch.core.records import Context, content_id
from flipsearch.defaults import library_for
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.prompts.attacks import attacked_prompts
from flipsearch.prompts.sets import PromptSet, prompts_of
from flipsearch.reporting.files import read_study
from flipsearch.reporting.study_file import LEDGER_FILE, STUDY_FILE, study_folder
from flipsearch.results import SearchResult
from flipsearch.searching.setup import START, SearchSetup, prepare_search
from flipsearch.templating.library import FILE_ENDINGS, TemplateLibrary, given_contexts
from flipsearch.workspace import write_result


def search_inputs(given: Given[SearchConfig]) -> tuple[SearchSetup, PromptSet]:
    """Return the checked settings of a search with its contexts, and its prompts."""
    config = given.config()
    library = library_for(config.model, config.contexts)
    prompts = attacked_prompts(prompts_of(config), config.attacks, config, config.attack_score)
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
