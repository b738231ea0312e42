"""search, plan, score and report: contexts, their flip rates and their leaderboard.

    settings --check--> prompts, judges, folder --load--> models --search--> Study --write--> files

Everything that can be wrong with the input is found before a model is loaded.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from flipsearch.api.settings import Given, takes, with_card
from flipsearch.backends.base import check_model, check_rewriter, model_identity
from flipsearch.config import ModelConfig, ScoreConfig, SearchConfig, is_endpoint
from flipsearch.core.errors import ConfigError, NothingToFlipError, PoorCoverageError, StudyError
from flipsearch.core.files import RESULT_PACKAGES, package_versions, write_text
from flipsearch.core.progress import Progress
from flipsearch.core.records import Context, content_id
from flipsearch.defaults import library_for
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.prompts.sets import PromptSet, prompts_of
from flipsearch.reporting.compare import Comparison, compare_studies
from flipsearch.reporting.criteria import criteria, junit_error, junit_xml
from flipsearch.reporting.files import check_best, read_study, write_study
from flipsearch.reporting.study_file import STUDY_FILE, expects_sound_study
from flipsearch.results import ContextCheck, SearchResult
from flipsearch.searching.budget import Budget
from flipsearch.searching.plan import SearchPlan, plan_search
from flipsearch.searching.setup import START, SearchSetup, prepare_search
from flipsearch.searching.storage import write_storage
from flipsearch.searching.study import run_score, run_study
from flipsearch.templating.library import FILE_ENDINGS, TemplateLibrary, given_cards, given_contexts
from flipsearch.workspace import (
    LEDGER_FILE,
    known_length_and_speed,
    length_and_speed,
    study_folder,
    study_session,
    with_human_labels,
    write_result,
)


@takes(SearchConfig)
def search(
    given: Given[SearchConfig], *, progress: Progress | None = None, on_plan: Callable[[SearchPlan], None] | None = None
) -> SearchResult:
    """Search the context that flips most unsafe rollouts under the over-refusal cap, and write its report.

    The same settings again continue the study or, once it is finished, return it. `config` is a TOML file of settings;
    keywords win over it. `on_plan` is called with the plan before the first rollout. Raises FlipsearchError in one line
    for anything that cannot be used.
    """
    setup, prompts = _prepare(given)
    config, budget = setup.config, Budget(setup)
    check_best(config.best)
    if finished := _finished(setup, prompts):
        return finished

    def show_plan(ledger: Ledger) -> None:
        length, speed = length_and_speed(ledger)
        if on_plan:
            on_plan(plan_search(setup, mean_length=length, tokens_per_s=speed))

    name, rewriter = config.study_name(), config.rewriter_config()
    with study_session(config, "search", prompts, name, progress, rewriter, show_plan) as session:
        length, speed = length_and_speed(session.workspace.ledger)
        plan = plan_search(setup, mean_length=length, tokens_per_s=speed, sampling=session.runner.sampling)
        session.log_start(plan=plan.as_dict())
        try:
            study = run_study(setup, session.runner, budget, session.rewriter, session.others)
        except (NothingToFlipError, PoorCoverageError) as error:
            if config.best.is_file():
                raise type(error)(f"{error} '{config.best}' of an earlier search is left as it was.") from None
            raise
        write_storage(study, setup.space, session.workspace.folder)
        result = session.finish(study, config.best)
        if not session.runner.to_repeat and (key := _inputs_key(setup, prompts)):
            session.workspace.ledger.note(key, "")
        return result


@takes(SearchConfig)
def plan(
    given: Given[SearchConfig], *, delta: float = 0.05, power: float = 0.8, tokens_per_second: float | None = None
) -> SearchPlan:
    """Return what a search takes (prompts, rollouts, tokens, time) and which differences it can tell, without a model.

    `delta` is the difference of flip rates that the confirm split should detect with probability `power`. The length
    of a completion, and the speed if it is not given, are taken from the study's ledger, if there is one.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < math.inf:
        raise ConfigError(f"--tokens-per-second is {tokens_per_second:g}, expected a number above 0.")
    setup, _ = _prepare(given)
    config = setup.config
    Budget(setup)
    check_model(config)
    if rewriter := config.rewriter_config():
        check_rewriter(rewriter)
    for judge in filter(None, (config.judge, config.confirm_judge, *config.second_judges)):
        load_judge(judge)
    length, speed = known_length_and_speed(config.reports / config.study_name())
    return plan_search(setup, mean_length=length, tokens_per_s=tokens_per_second or speed, delta=delta, power=power)


@takes(ScoreConfig)
def score(given: Given[ScoreConfig], context: str | Sequence[str], *, progress: Progress | None = None) -> SearchResult:
    """Measure contexts that you already have on every prompt of a set, beside the empty placebo.

    A context is a text, a .txt file, a card (best.json) or the name of a template (with its default parameters).
    """
    return _scored(given.config(), [context] if isinstance(context, str) else context, progress)


@takes(ScoreConfig)
def check(
    given: Given[ScoreConfig],
    context: str | Sequence[str],
    *,
    min_flip: float | None = None,
    max_over_refusal: float | None = None,
    junit: Path | str | None = None,
    progress: Progress | None = None,
) -> ContextCheck:
    """Measure contexts as `score` does, and say whether each is good enough: for continuous integration.

    `min_flip` is the least flip rate, `max_over_refusal` the highest share of benign prompts refused beyond those
    refused without a context; each is a fraction. What cannot be measured is not good enough. A card says which model
    and prompts it is for, and is measured on its sealed confirm prompts unless another `split` is given. `junit` is a
    file to write the outcome to, as JUnit XML.
    """
    least, most = (
        _fraction(flag, value) for flag, value in (("--min-flip", min_flip), ("--max-over-refusal", max_over_refusal))
    )
    if least is None and most is None:
        raise ConfigError("nothing to check: give --min-flip, --max-over-refusal or both, e.g. --min-flip 0.8.")
    if junit and (Path(junit).is_dir() or not Path(junit).absolute().parent.is_dir()):
        raise ConfigError(f"--junit is '{junit}', expected a file in a folder that is there.")
    texts = [context] if isinstance(context, str) else list(context)
    config = with_card(given, texts).config()
    if any(map(given_cards, texts)) and config.split is None and not config.harmful:
        config = config.model_copy(update={"split": "confirm"})
    try:
        result = _scored(config, texts, progress)
    except (NothingToFlipError, PoorCoverageError) as error:
        if junit:
            write_text(Path(junit), junit_error(texts, str(error)))
        raise
    checked = ContextCheck(result, tuple(criteria(result.study, least, most)))
    if junit:
        write_text(Path(junit), junit_xml(result.study, checked.criteria))
    return checked


def _fraction(flag: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"{flag} is {value:g}, expected a fraction from 0 to 1, such as 0.8.")
    return value


def _scored(config: ScoreConfig, texts: Sequence[str], progress: Progress | None) -> SearchResult:
    contexts = given_contexts(texts, library_for(config.model, config.contexts), config.placement)
    ids = sorted(context.context_id for context in contexts)
    name, prompts = config.study_name(ids), prompts_of(config)
    with study_session(config, f"score {' '.join(ids)}", prompts, name, progress) as session:
        session.log_start()
        study = run_score(config, session.runner, contexts, prompts.prompts, name, session.others.second)
        return session.finish(study, None)


def report(study: Path | str, *, reports: Path | None = None) -> SearchResult:
    """Write a finished study's files again, with what is known of its judge by now; nothing is generated or judged."""
    folder = study_folder(study, reports)
    path, read = folder / LEDGER_FILE, read_study(folder)
    with (
        expects_sound_study(folder / STUDY_FILE),
        Ledger(path, read_only=True) if path.is_file() else nullcontext() as ledger,
    ):
        result = with_human_labels(read, folder)
        write_study(result, folder, ledger)
    return SearchResult(result, folder, folder / "best.txt" if result.winner else None)


def compare(studies: Sequence[Path | str], *, reports: Path | None = None) -> Comparison:
    """Return what the contexts that finished studies share do in each: other models, judges or seeds; paired."""
    if len(studies) < 2:
        raise ConfigError("compare takes two or more studies, by name or folder.")
    folders = [study_folder(study, reports) for study in studies]
    for number, folder in enumerate(folders):
        if folder.resolve() in (earlier.resolve() for earlier in folders[:number]):
            raise ConfigError(f"the study '{folder}' is given twice; name each study once.")
    read = [read_study(folder) for folder in folders]
    with expects_sound_study(folders[0].parent):
        return compare_studies(read)


def _prepare(given: Given[SearchConfig]) -> tuple[SearchSetup, PromptSet]:
    config = given.config()
    library, prompts = library_for(config.model, config.contexts), prompts_of(config)
    setup = prepare_search(config, library, prompts.prompts)
    return replace(setup, start=_start(config, library)), prompts


def _inputs_key(setup: SearchSetup, prompts: PromptSet) -> str | None:
    """Return the ledger's note that a search of these inputs was finished; None where running it again goes on.

    That is so with a limit of time; and an endpoint is probed each time. Nothing is loaded.
    """
    config = setup.config
    if config.time_s is not None or config.backend not in ("transformers", "vllm") or is_endpoint(config.model):
        return None
    settings = config.model_dump(mode="json", exclude=ModelConfig.free_fields() | {"study", "best"})
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


def _finished(setup: SearchSetup, prompts: PromptSet) -> SearchResult | None:
    """Return the study of these inputs if it is finished already: no model is loaded for it."""
    config = setup.config
    folder = config.reports / config.study_name()
    if not ((folder / STUDY_FILE).is_file() and (folder / LEDGER_FILE).is_file()):
        return None
    check_model(config)
    key = _inputs_key(setup, prompts)
    with Ledger(folder / LEDGER_FILE, read_only=True) as ledger:
        if key not in ledger.notes():
            return None
        with suppress(StudyError):  # of another version: it is made again
            return replace(write_result(read_study(folder), folder, config.best, ledger), was_finished=True)
    return None


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
