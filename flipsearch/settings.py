"""Settings as they are given: functions whose keywords are the settings of a config class, and what goes with a model.

@takes(SearchConfig)
def search(given: Given, *, progress: Progress | None = None) -> SearchResult: ...

search(model="pocket", num_contexts=64, config="study.toml")

A signature and its help are made from the class. Where the settings say nothing, prompts, contexts, judge and how long
an answer may be are those that go with the model.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from flipsearch.backends.base import command_scope
from flipsearch.backends.models import POCKET_MODEL, base_model, require_local_model
from flipsearch.config import MAX_TOKENS, AnatomyConfig, ChatConfig, ModelConfig
from flipsearch.core.errors import ConfigError, TemplateError, unknown_name
from flipsearch.core.records import Context
from flipsearch.core.settings import flag_of, make_config, read_toml, value_type
from flipsearch.judging.library import respelled
from flipsearch.prompts.files import require_local_prompts
from flipsearch.templating.library import (
    CONTEXTS,
    POCKET_CONTEXTS,
    Card,
    TemplateLibrary,
    given_cards,
    given_contexts,
    load_library,
)

Config = TypeVar("Config", bound=ModelConfig)
OneContext = TypeVar("OneContext", AnatomyConfig, ChatConfig)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Given(Generic[Config]):
    """Settings as they were given, not yet checked."""

    kind: type[Config]
    file: Mapping[str, Any]
    keywords: Mapping[str, Any]
    """From the call; they win over the file."""

    def config(self) -> Config:
        """Return the settings, checked and with the defaults that go with the model; raises ConfigError."""
        return resolve(make_config(self.kind, self.file, self.keywords))


def takes(kind: type[Config]) -> Callable[[Callable[Concatenate[Given[Config], Rest], Result]], Callable[..., Result]]:
    """Turn a function of `Given` into one of keywords: the fields of `kind`, a TOML file `config`, its own ones."""

    def decorate(function: Callable[Concatenate[Given[Config], Rest], Result]) -> Callable[..., Result]:
        _, *own = inspect.signature(function).parameters.values()

        @wraps(function)
        def call(*positional: Any, config: Path | str | None = None, **keywords: Any) -> Result:
            others = {parameter.name for parameter in own}
            for name in keywords.keys() - others - kind.model_fields.keys():
                raise ConfigError(unknown_name("setting", name, [*kind.model_fields, *others]))
            file = read_toml(Path(config)) if config else {}
            given = Given(kind, file, {name: value for name, value in keywords.items() if name not in others})
            with command_scope():
                return function(given, *positional, **{name: keywords[name] for name in keywords.keys() & others})

        fields = [parameter_of(kind, name) for name in kind.model_fields]
        toml = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | str | None)
        ahead = [parameter for parameter in own if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
        behind = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
        signature = inspect.signature(function).replace(parameters=[*ahead, *fields, toml, *behind])
        call.__signature__ = signature  # type: ignore[attr-defined]
        settings = "\n".join(f"    {name}: {field.description}" for name, field in kind.model_fields.items())
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nSettings:\n{settings}"
        return call

    return decorate


def parameter_of(kind: type[ModelConfig], name: str) -> inspect.Parameter:
    """Return the keyword of a setting; a sequence of texts may be given as one text."""
    field = kind.model_fields[name]
    typed, is_sequence = value_type(kind, name)
    if is_sequence:
        annotation: Any = Sequence[str] | str if typed is str else Sequence[int] | int
        if flag_of(kind, name).is_text:
            annotation |= Sequence[float]
    else:
        choices = field.annotation if "Literal" in str(field.annotation) else typed
        annotation = choices | str if typed is Path else choices
        if flag_of(kind, name).is_text:
            annotation |= float
    if field.default is None:
        annotation |= None
    default = inspect.Parameter.empty if field.is_required() else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_card(given: Given[Any], contexts: Sequence[str]) -> Given[Any]:
    """Return settings with those that follow from the cards of contexts, as far as they are not given."""
    typed = {key: value for key, value in {**given.file, **given.keywords}.items() if value is not None}
    cards = [card for context in contexts for card in given_cards(context)]
    return Given(given.kind, card_settings(cards, typed) | dict(given.file), given.keywords)


def with_one_context(given: Given[OneContext]) -> tuple[OneContext, Context]:
    """Return settings with those of the context's card, and the context; ConfigError for a file that holds several."""
    named = {**given.file, **given.keywords}.get("context")
    config = with_card(given, [str(named)] if named else []).config()
    contexts = given_contexts([config.context], library_for(config.model, config.contexts), config.placement)
    if len(contexts) > 1:
        raise ConfigError(f"--context '{config.context}' holds {len(contexts)} contexts; give one of them.")
    return config, contexts[0]


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


def resolve(config: Config) -> Config:
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
