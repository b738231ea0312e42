"""list_things: what a name on the command line can mean."""

from collections.abc import Sequence

from flipsearch.backends.base import list_backends
from flipsearch.backends.models import list_models
from flipsearch.core.errors import ConfigError, unknown_name
from flipsearch.judging.library import list_judges
from flipsearch.prompts.problems import list_problem_sets
from flipsearch.prompts.sets import list_sets
from flipsearch.templating.library import load_library


def list_things(what: str, contexts: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return rows of name and description for models, contexts, judges, prompts, problems or backends."""
    tables = {
        "models": list_models,
        "contexts": lambda: load_library(contexts).descriptions(),
        "judges": list_judges,
        "prompts": lambda: {
            name: ", ".join(f"{count} {kind}" for kind, count in counts.items()) for name, counts in list_sets().items()
        },
        "problems": lambda: {name: f"{count} problems" for name, count in list_problem_sets().items()},
        "backends": list_backends,
    }
    if what not in tables:
        raise ConfigError(unknown_name("list", what, tables))
    return [{"name": name, "description": text} for name, text in tables[what]().items()]
