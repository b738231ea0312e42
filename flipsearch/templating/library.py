"""Find the context templates: the shipped contexts/ and any folder or file that the user names."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from flipsearch.errors import PluginError, unknown_name
from flipsearch.registry import content_folder
from flipsearch.templating.template import Template, TemplateRole, read_template


class TemplateLibrary:
    """Templates by name. A user's template replaces the shipped one of the same name."""

    def __init__(self, templates: Iterable[Template]) -> None:
        self._templates = {t.name: t for t in templates}

    def __getitem__(self, name: str) -> Template:
        if name not in self._templates:
            raise PluginError(unknown_name("context template", name, self._templates, "See: flipsearch list contexts."))
        return self._templates[name]

    def names(self, role: TemplateRole | None = None) -> list[str]:
        """Return the names of the templates with `role`, sorted."""
        return sorted(n for n, t in self._templates.items() if role in (None, t.role))

    def descriptions(self) -> dict[str, str]:
        """Return name -> what the list of contexts says of it."""
        return {name: template.description for name, template in self._templates.items()}

    def select(self, names: Sequence[str] = ()) -> list[Template]:
        """Return the templates to search: the named ones, or every one with role "context"."""
        return [self[name] for name in names] if names else [self[name] for name in self.names("context")]


def load_library(extra: Sequence[Path | str] = ()) -> TemplateLibrary:
    """Read contexts/*.j2 and the folders or files in `extra`.

    Raises PluginError for a path without templates and TemplateError (file:line) for a bad template.
    """
    files = sorted(content_folder("contexts").glob("*.j2"))
    for path in map(Path, extra):
        found = sorted(path.glob("*.j2")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise PluginError(f"no context template at '{path}'; expected a .j2 file or a folder that holds some.")
        files += found
    return TemplateLibrary(read_template(file) for file in files)
