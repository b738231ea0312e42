"""What a training is asked for: its settings, the contexts that they name, and what a context's card adds to both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flipsearch import registry
from flipsearch.config import TrainConfig, make_config
from flipsearch.errors import ConfigError
from flipsearch.records import Context
from flipsearch.templating.given import Card, given_cards, given_contexts
from flipsearch.templating.library import load_library
from flipsearch.templating.placebos import control_context

PAPER = {"learning_rate": 1e-5, "train_batch_size": 64}
POCKET = {"learning_rate": 3e-4, "train_batch_size": 32, "epochs": 6.0, "horizon": 40}
"""The pocket model is small and learns from few prompts: it bears a larger rate and needs more passes. It decides
within 40 tokens."""


@dataclass(frozen=True, slots=True)
class TrainInputs:
    """What was asked for, complete."""

    config: TrainConfig
    """With what the cards say and the defaults that hang on the model filled in."""
    contexts: tuple[Context, ...]
    """For harmful prompts; at least one."""
    benign_context: Context | None
    """For benign prompts."""
    found_on: tuple[str, ...]
    """Identities of the models that the cards say the contexts were found on."""


def train_inputs(*sources: Mapping[str, Any]) -> TrainInputs:
    """Return what `sources` ask for, fields of TrainConfig of which the later ones win.

    The first context's card says which model and prompts it is for, and what is given here wins over it. Raises
    ConfigError or PluginError in one line: no context, a setting or text that cannot be used, a card of another model.
    """
    given = {key: value for source in sources for key, value in source.items() if value is not None}
    named = _named(given.get("context"))
    cards = [card for one in named for card in given_cards(one)]
    config = make_config(TrainConfig, _of_card(cards, given), given, {"context": named})
    config = registry.resolve(_with_model_defaults(config, given))
    of_benign = given_cards(config.benign_context) if config.benign_context else []
    _check_cards([*cards, *of_benign], config.model)
    library = load_library(config.contexts)
    contexts = given_contexts(config.context, library)
    if config.control:
        contexts = [control_context(library, config.control, _only(contexts, f"control {config.control}"))]
    benign = given_contexts([config.benign_context], library) if config.benign_context else []
    # vLLM gives the same weights another identity: there is nothing to compare.
    known = [card for card in (*cards, *of_benign) if card.backend == config.backend]
    found_on = tuple(card.model_id for card in known if card.model_id)
    return TrainInputs(config, tuple(contexts), _only(benign, "benign-context") if benign else None, found_on)


def _only(contexts: Sequence[Context], flag: str) -> Context:
    if len(contexts) > 1:
        raise ConfigError(f"--{flag} stands in for one context; {len(contexts)} were given.")
    return contexts[0]


def _named(context: object) -> Sequence[str]:
    if not context:
        raise ConfigError("no context given; train needs --context best.txt, a card, a text or the name of a template.")
    named = [context] if isinstance(context, str) else context
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) for one in named):
        raise ConfigError(f"context = {context!r}: expected a text or a list of texts.")
    return named


def _of_card(cards: Sequence[Card], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the first card stands for, those given apart."""
    if not cards or cards[0].model is None:
        return {}
    card = cards[0]
    found: dict[str, Any] = {"model": card.model}
    if given.get("model", card.model) == card.model:
        found |= {"thinking": card.sampling.thinking, "max_tokens": card.sampling.max_tokens}
    if not given.keys() & {"prompts", "harmful", "benign"}:
        found |= card.prompts.model_dump()
    return found


def _check_cards(cards: Sequence[Card], model: str) -> None:
    """Refuse a card that was found for another model: a flip rate holds for one model."""
    for card in cards:
        if card.model is not None and card.model != model:
            raise ConfigError(
                f"the context's card says that it was found for '{card.model}', but the model is '{model}'. "
                "Search with that model, or give the text alone, in a file without a card beside it."
            )


def _with_model_defaults(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    own = POCKET if registry.base_model(config.model) == registry.ORGANISM else PAPER
    return config.model_copy(update={key: value for key, value in own.items() if key not in given})
