"""What goes with a model where the settings say nothing: prompts, contexts, judge, and how long an answer may be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flipsearch.backends.models import POCKET_MODEL, base_model, require_local_model
from flipsearch.config import MAX_TOKENS, ModelConfig
from flipsearch.core.errors import TemplateError
from flipsearch.judging.library import respelled
from flipsearch.prompts.files import require_local_prompts
from flipsearch.templating.library import CONTEXTS, POCKET_CONTEXTS, Card, TemplateLibrary, load_library

Checked = TypeVar("Checked", bound=ModelConfig)


def default_prompts(model: str) -> str:
    """Return the prompt set that goes with a model: the pocket model's own world, or the starter set."""
    return POCKET_MODEL if base_model(model) == POCKET_MODEL else "starter"


def library_for(
    model: str, extra: Sequence[Path | str] = (), broken: dict[Path, TemplateError] | None = None
) -> TemplateLibrary:
    """Return the templates of a model's contexts, with the folders and files in `extra`; see load_library."""
    return load_library(extra, POCKET_CONTEXTS if base_model(model) == POCKET_MODEL else CONTEXTS, broken)


def default_judge(model: str) -> str:
    """Return the judge of a model's answers where none is named: rules fit the pocket model's few phrases best."""
    return "refusal" if base_model(model) == POCKET_MODEL else "compact"


def default_max_tokens(model: str) -> int:
    """Return how long a completion may be: the pocket model's are short."""
    return 160 if base_model(model) == POCKET_MODEL else MAX_TOKENS


def default_think_tokens(model: str) -> int | None:
    """Return the budget of a thought: the pocket model's are a line long and need none; None is decided by template."""
    return 0 if base_model(model) == POCKET_MODEL else None


def resolve(config: Checked) -> Checked:
    """Fill in prompts, judge and lengths that hang on the model, so that what is written down is what was done.

    Judges are spelled in one way each, so that settings of one meaning are the same. Raises ConfigError for what
    cannot be read as a judge.
    """
    prompts = config.prompts
    if prompts is None and not config.harmful and not config.benign:
        prompts = default_prompts(config.model)
    max_tokens = config.max_tokens or default_max_tokens(config.model)
    think_tokens = default_think_tokens(config.model) if config.think_tokens is None else config.think_tokens
    filled = {
        "prompts": prompts,
        "think_tokens": think_tokens,
        "max_tokens": max_tokens,
        "judge": config.judge or default_judge(config.model),
    }
    return config.model_copy(update=filled | respelled(dict(config) | filled))


def card_settings(cards: Sequence[Card], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from the first card, as far as they are not given."""
    card = cards[0] if cards else None
    if card is None or card.model is None:
        return {}
    settings: dict[str, Any] = {}
    if "model" not in given:
        settings["model"] = require_local_model(card.model, "the context's card", "--model")
    if given.get("model", card.model) == card.model:
        settings |= {"thinking": card.sampling.thinking, "max_tokens": card.sampling.max_tokens}
        settings |= {"think_tokens": card.sampling.think_tokens}
    if not given.keys() & {"prompts", "harmful", "benign"}:
        prompts = card.prompts
        named = [*([prompts.prompts] if prompts.prompts else []), *prompts.harmful, *prompts.benign]
        todo = "give --prompts, or --harmful and --benign, yourself if you trust them"
        require_local_prompts(named, "the context's card", todo)
        settings |= prompts.model_dump()
    return settings
