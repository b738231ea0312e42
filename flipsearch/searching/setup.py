"""What a study will do, settled and checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.config import StudyConfig
from flipsearch.core.errors import StudyError
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Prompt, Split
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.searching.operators import built_in
from flipsearch.searching.space import Space
from flipsearch.templating.library import PlaceboRow, TemplateLibrary, placebo_rows


@dataclass(frozen=True, slots=True)
class SearchSetup:
    """A study that can be run."""

    config: StudyConfig
    """Its settings."""
    space: Space
    """The contexts that it can try."""
    placebos: tuple[PlaceboRow, ...]
    """The rows that show what no safety content does."""
    search: tuple[Prompt, ...]
    """The prompts that the search sees, in nested order."""
    confirm: tuple[Prompt, ...]
    """The sealed prompts, seen by the finalists alone."""
    operators: tuple[Operator, ...] = ()
    """The rules that make contexts out of others."""
    benign_contexts: tuple[Context, ...] = ()
    """What may be the context for benign prompts in training."""

    @property
    def num_contexts(self) -> int:
        """Most contexts that are proposed; without operators, at most as many as the templates hold."""
        return self.config.num_contexts if self.operators else min(self.config.num_contexts, len(self.space))


def prepare_search(config: StudyConfig, library: TemplateLibrary, prompts: Sequence[Prompt]) -> SearchSetup:
    """Return the plan of a study over prompts that have their splits, each split in nested order.

    Raises PluginError for an unknown template, ConfigError for templates that cannot be searched, and StudyError for
    prompts without a harmful one on both sides or with one on two sides.
    """
    search, confirm = _of_split(config, prompts, "search"), _of_split(config, prompts, "confirm")
    if twice := {prompt.prompt_id for prompt in search} & {prompt.prompt_id for prompt in confirm}:
        raise StudyError(f"{len(twice)} prompts are both in search and in confirm; the sealed split must be unseen.")
    templates = library.select(config.templates)
    benign = [library[name].context() for name in library.names("benign")] if config.benign_context else []
    return SearchSetup(
        config=config,
        space=Space(templates, config.placements),
        placebos=placebo_rows(library),
        search=search,
        confirm=confirm,
        operators=tuple(built_in(templates, config.placements)) if config.breed else (),
        benign_contexts=tuple(benign),
    )


def _of_split(config: StudyConfig, prompts: Sequence[Prompt], split: Split) -> tuple[Prompt, ...]:
    chosen = first_of_each_kind([prompt for prompt in prompts if prompt.split == split], config.max_prompts)
    if not any(prompt.kind == "harmful" for prompt in chosen):
        raise StudyError(f"no harmful prompt in the {split} split (of {len(prompts)} prompts); give more prompts.")
    return chosen
