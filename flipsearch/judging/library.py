"""What a judge needs to run, read from its file as text: a model, packages, a file; and whether they are here.

Finds and loads judges: files of judges/, the user's own files and folders, and entry points of installed packages.

One file holds one judge: a single public class with `name`, `identity` and `judge`, built with keyword options alone.
Listing reads the files as text; only loading runs them.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from flipsearch.core.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.core.package import content_folder
from flipsearch.core.protocols import Judge
from flipsearch.judging.contract import faults
from flipsearch.judging.panel import PanelJudge, ThoughtJudge
from flipsearch.judging.spec import PARTS, Member, build_judge, parse_spec


@dataclass(frozen=True, slots=True)
class Needs:
    """What the literals `needs_model`, `needs_packages`, `needs_checkpoint` and `needs_option` of a class say."""

    model: str = ""
    """Hub id of the model that it takes if none is given; "" if it needs none."""
    packages: tuple[str, ...] = ()
    """Names to import."""
    checkpoint: str = ""
    """File in torch's folder of checkpoints that it takes if none is given."""
    option: str = ""
    """An option that must be given."""

    def told(self) -> str:
        """Return in a bracket what is needed, and whether it is here; "" if nothing is."""
        missing = [package for package in self.packages if not _is_installed(package)]
        parts = [f"not installed: pip install {' '.join(missing)}"] if missing else []
        if self.model:
            is_here = _is_downloaded(self.model)
            parts.append(f"needs {self.model}: {'here' if is_here else 'not downloaded yet'}, or model=PATH")
        if self.checkpoint:
            is_here = (_torch_home() / "hub" / "checkpoints" / self.checkpoint).is_file()
            parts.append(f"needs {self.checkpoint}: {'here' if is_here else 'not downloaded yet'}, or checkpoint=PATH")
        if self.option:
            parts.append(f"needs {self.option}=…")
        return f"[{'; '.join(parts)}]" if parts else ""


def needs_of(syntax: ast.ClassDef) -> Needs:
    """Return what a class says that it needs."""
    told = {target: value for node in syntax.body for target, value in _literals(node)}
    packages = told.get("needs_packages", ())
    names = tuple(map(str, packages)) if isinstance(packages, tuple) else ()
    model, checkpoint, option = (str(told.get(f"needs_{name}") or "") for name in ("model", "checkpoint", "option"))
    return Needs(model, names, checkpoint, option)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # what it is a part of is not there, or it is no name
        return False


def _is_downloaded(model: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:  # no hub id
        return False


def _torch_home() -> Path:
    """Where torch keeps downloads, by its own rule; asking it would import it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser()


def _literals(node: ast.stmt) -> list[tuple[str, Any]]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(value, ast.Constant | ast.Tuple):
        return []
    try:
        return [(target.id, ast.literal_eval(value)) for target in targets if isinstance(target, ast.Name)]
    except ValueError:
        return []


ENTRY_POINTS = "flipsearch.judges"


@dataclass(frozen=True, slots=True)
class OtherJudges:
    """The judges of a study beside the one that searches."""

    confirm: Judge | None = None
    """Decides on the confirm split; None is the one that searches."""
    second: tuple[Judge, ...] = ()
    """Have a column each, and decide nothing."""


def list_judges() -> dict[str, str]:
    """Return the names of all judges with what each is, what it needs and whether it can run here.

    Their files are not run.
    """
    described = {name: _describe(path) for name, path in _files().items()}
    for name, entry in _entries().items():
        described.setdefault(name, f"from {entry.value}")
    return dict(sorted(described.items()))


def load_judge(spec: str) -> Judge:
    """Return the judge, or the panel of them, that a text of the form told in judging.spec asks for.

    Raises PluginError if there is none of a name, or if it cannot be loaded or is no judge, and ConfigError for options
    or a rule that cannot be used. The file of a judge that is named by its path is run.
    """
    wanted = parse_spec(spec)
    members = [_load(member) for member in wanted.members]
    return PanelJudge(members, wanted.rule) if wanted.rule else members[0]


def remaining_memory_share(*judges: Judge | None) -> float:
    """Return what is left for a model of what vLLM alone would take of a GPU; one of the judges is loaded at a time."""
    return 1.0 - max(getattr(judge, "memory_share", 0.0) for judge in judges)


def unload(judge: Judge) -> None:
    """Free a judge's model; it is loaded again if there is more to judge."""
    if close := getattr(judge, "close", None):
        close()


@contextmanager
def unload_after(*judges: Judge | None) -> Iterator[None]:
    """Free the models of judges at the end of a block, whatever ends it."""
    with ExitStack() as stack:
        for judge in judges:
            if judge is not None:
                stack.callback(unload, judge)
        yield


def _load(member: Member) -> Judge:
    """Any judge takes the option `part`: which part of a completion it is shown."""
    others = {name: value for name, value in member.options.items() if name != "part"}
    part = member.options.get("part", PARTS[0])
    if part not in PARTS:
        raise ConfigError(f"judge {member.name}, option part: {unknown_name('value', part, PARTS)}")
    judge = _find(Member(member.name, others))
    return judge if part == PARTS[0] else ThoughtJudge(judge)


def _find(member: Member) -> Judge:
    name = member.name
    if name.lower().endswith(".py") or "/" in name or "\\" in name:
        return build_judge(_class_of(_judge_file(Path(os.path.expanduser(name)))), name, member.options)
    files, entries = _files(), _entries()
    if name in files:
        return build_judge(_class_of(files[name]), str(files[name]), member.options)
    if name in entries:
        return build_judge(_from_entry(entries[name]), f"entry point '{name}'", member.options)
    raise PluginError(
        unknown_name("judge", name, {*files, *entries}, "Or give the path of a judge file (.py) or folder.")
    )


def _files() -> dict[str, Path]:
    paths = sorted(content_folder("judges").iterdir())
    folders = {path.name: path / f"{path.name}.py" for path in paths if path.is_dir()}
    files = {path.stem: path for path in paths if path.suffix == ".py" and not path.stem.startswith("_")}
    return {name: path for name, path in folders.items() if path.is_file()} | files


def _judge_file(path: Path) -> Path:
    """The judge file itself; of a folder the one that bears its name, or the only one."""
    if not os.path.isdir(path):  # which raises nothing, where a folder may not be looked into
        return path
    found = sorted(file for file in path.glob("*.py") if not file.stem.startswith("_"))
    named = [file for file in found if file.stem == path.resolve().name]
    if len(found) != 1 and not named:
        saw = ", ".join(file.name for file in found) or "none"
        raise PluginError(f"judge folder '{path}' must hold one judge file (.py) or {path.name}.py, got {saw}.")
    return named[0] if named else found[0]


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _describe(path: Path) -> str:
    try:
        syntax = _public_class(path)
    except PluginError as error:
        return f"cannot be used: {error}"
    needs: Needs = needs_of(syntax)
    return f"{(ast.get_docstring(syntax) or '').partition(chr(10))[0]} {needs.told()}".strip()


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
    """The class of a judge file, which is run."""
    class_name, path = _public_class(path).name, path.resolve()
    module_name = f"flipsearch_judge_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise PluginError(f"judge file '{path}' must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling look a class's module up here.
    sys.modules[module_name] = module
    with faults(PluginError, f"judge file '{path}' fails when loaded"):
        module_spec.loader.exec_module(module)
        return getattr(module, class_name)


def _from_entry(entry: EntryPoint) -> Any:
    with faults(PluginError, f"judge '{entry.name}' ({entry.value}) fails when loaded"):
        return entry.load()
