"""Finds and loads judges: files of judges/, the user's own files, and entry points of installed packages.

One file holds one judge: a single public class with `name`, `identity` and `judge`, built without arguments. Listing
reads the files as text; only loading runs them.
"""

import ast
import hashlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from flipsearch.errors import PluginError, near_names, unknown_name
from flipsearch.protocols import Judge
from flipsearch.registry import content_folder

ENTRY_POINTS = "flipsearch.judges"


def list_judges() -> dict[str, str]:
    """Return the names of all judges with a one-line description each, without running their files."""
    described = {name: _describe(path) for name, path in _files().items()}
    for name, entry in _entries().items():
        described.setdefault(name, f"from {entry.value}")
    return dict(sorted(described.items()))


def load_judge(spec: str) -> Judge:
    """Return the judge of a name, or of a path to a Python file, which is run.

    Raises PluginError if there is none of that name, or if it cannot be loaded or is no judge.
    """
    if spec.lower().endswith(".py") or "/" in spec or "\\" in spec:
        return _build(_class_of(Path(spec).expanduser()), spec)
    files, entries = _files(), _entries()
    if spec in files:
        return _build(_class_of(files[spec]), str(files[spec]))
    if spec in entries:
        return _build(_from_entry(entries[spec]), f"entry point '{spec}'")
    raise PluginError(unknown_name("judge", spec, {*files, *entries}, "Or give the path of a judge file (.py)."))


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(content_folder("judges").glob("*.py")) if not path.stem.startswith("_")}


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _describe(path: Path) -> str:
    try:
        docstring = ast.get_docstring(_public_class(path)) or ""
    except PluginError as error:
        return f"cannot be used: {error}"
    return docstring.partition("\n")[0]


def _public_class(path: Path) -> ast.ClassDef:
    """The one public class that a judge file defines, as syntax."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.glob("*.py")]
        raise PluginError(f"no judge file '{path}'.{near_names(path.name, siblings)}") from None
    except OSError as error:
        raise PluginError(f"cannot read judge file '{path}': {error.strerror or error}.") from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PluginError(f"{path}:{line} is not Python: {getattr(error, 'msg', error)}.") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    if len(classes) != 1:
        names = ", ".join(node.name for node in classes) or "none"
        raise PluginError(
            f"judge file '{path}' must define exactly one public class, got {names}. Start helpers with an underscore."
        )
    return classes[0]


def _class_of(path: Path) -> Any:
    class_name = _public_class(path).name
    return getattr(_run(path), class_name)


def _run(path: Path) -> ModuleType:
    path = path.resolve()
    module_name = f"flipsearch_judge_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise PluginError(f"judge file '{path}' must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling look a class's module up here.
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise PluginError(f"judge file '{path}' fails when loaded: {type(error).__name__}: {error}") from error
    return module


def _from_entry(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"judge '{entry.name}' ({entry.value}) fails when loaded: {error}") from error


def _build(judge_class: Any, where: str) -> Judge:
    try:
        judge = judge_class()
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"judge in {where} cannot be built: {type(error).__name__}: {error}") from error
    texts = [name for name in ("name", "identity") if not isinstance(getattr(judge, name, None), str)]
    missing = texts + ([] if callable(getattr(judge, "judge", None)) else ["judge"])
    if missing:
        raise PluginError(
            f"judge in {where} lacks {', '.join(missing)}: it needs name and identity (text) and judge(exchanges)."
        )
    return cast(Judge, judge)
