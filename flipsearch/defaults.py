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


def default_settings(model: str) -> dict[str, Any]:
    """Return the settings that go with a model where the user gives none.

    The pocket model has its own world of prompts, and rules fit its few phrases best. Its answers are short, and its
    thoughts a line long: they need no budget. That of another model is decided by its chat template (None).
    """
    if base_model(model) == POCKET_MODEL:
        return {"prompts": POCKET_MODEL, "judge": "refusal", "max_tokens": 160, "think_tokens": 0}
    return {"prompts": "starter", "judge": "compact", "max_tokens": MAX_TOKENS, "think_tokens": None}


def library_for(
    model: str, extra: Sequence[Path | str] = (), broken: dict[Path, TemplateError] | None = None
) -> TemplateLibrary:
    """Return the templates of a model's contexts, with the folders and files in `extra`; see load_library."""
    return load_library(extra, POCKET_CONTEXTS if base_model(model) == POCKET_MODEL else CONTEXTS, broken)


def resolve(config: Checked) -> Checked:
    """Fill in prompts, judge and lengths that hang on the model, so that what is written down is what was done.

    Judges are spelled in one way each, so that settings of one meaning are the same. Raises ConfigError for what
    cannot be read as a judge.
    """
    filled = default_settings(config.model)
    if config.harmful or config.benign:
        del filled["prompts"]
    filled |= {name: getattr(config, name) for name in filled if getattr(config, name) not in (None, "")}
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
