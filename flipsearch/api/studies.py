"""search and plan: contexts, their flip rates and their leaderboard.

    settings --check--> prompts, judges, folder --load--> models --search--> Study --write--> files

Everything that can be wrong with the input is found before a model is loaded.
"""

import math
from collections.abc import Callable

from flipsearch.api.inputs import finished_study, inputs_key, search_inputs
from flipsearch.api.settings import Given, takes
from flipsearch.backends.base import check_model, check_rewriter
from flipsearch.backends.loading import known_sampling
from flipsearch.config import SearchConfig
from flipsearch.core.errors import ConfigError, NothingToFlipError, PoorCoverageError
from flipsearch.core.progress import Progress
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.reporting.files import check_best
from flipsearch.results import SearchResult
from flipsearch.searching.plan import Budget, SearchPlan, plan_search
from flipsearch.searching.study import run_study, write_storage
from flipsearch.workspace import (
    known_length_and_speed,
    length_and_speed,
    study_session,
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
