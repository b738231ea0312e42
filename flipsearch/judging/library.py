"""Lists, names and loads judges: files of judges/, the user's own files and folders, entry points of packages.

A file holds one judge: a single public class with `name`, `identity` and `judge`, built with keyword options alone.
Listing parses the files without running them; only loading a judge runs its file.

The value of `--judge` is one judge with its options, or a panel of judges and the rule that combines them:

    compact
    qwen3guard(reading=loose, model=./guard)
    qwen3guard(part=thought)
    compact+qwen3guard(model=./guard):any
    compact(weights='a+b (1).npz')+"./my+judge.py":all

A name or value in single or double quotes is taken literally; unquoted names contain no + and no brackets, unquoted
values no comma and no brackets.
"""

import ast
import hashlib
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from flipsearch.core.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.core.files import content_folder, read_text
from flipsearch.core.protocols import Judge
from flipsearch.judging.contract import build_judge, plugin_errors_as
from flipsearch.judging.panel import PanelJudge, ThoughtJudge

RULES = ("any", "all", "majority", "mean")
"""How many members must say UNSAFE; "mean": the mean of their p_unsafe must reach 0.5."""
_ENDINGS = f":{', :'.join(RULES[:-1])} or :{RULES[-1]}"
PARTS = ("answer", "thought")
"""Which part of a completion a judge is shown (option `part`); the first is the default."""
_QUOTES = ("'", '"')
_PIECE = re.compile(r"""(?:^|[+(,=])\s*(?:'[^']*'|"[^"]*")|.""", re.DOTALL)
"""A single character, or a delimiter together with the quoted name or value that follows it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One judge of a panel, or the only one; its options are constructor arguments, as written."""

    name: str
    """A name, or the path of a judge file or folder."""
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the canonical spelling, options sorted by name."""
        options = ", ".join(f"{name}={_quoted(value, ',()')}" for name, value in sorted(self.options.items()))
        return _quoted(self.name, "+:()") + (f"({options})" if options else "")


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """Which judges decide, and by which of the RULES; "" for a single judge."""

    members: tuple[Member, ...]
    rule: str = ""

    def __str__(self) -> str:
        """Return the canonical spelling: the same text for all specs that mean the same."""
        return "+".join(map(str, self.members)) + (f":{self.rule}" if self.rule else "")


def parse_spec(text: str) -> JudgeSpec:
    """Return the judges and the rule that `text` names. Raises ConfigError if it cannot be parsed."""
    parts = list(_split(text, "+"))
    *before, rule = _split(parts[-1], ":")
    if len(parts) == 1 and (not before or rule.strip() not in RULES):
        return JudgeSpec((_parse_member(text, text),))  # the colon of a drive, or an unknown name: loading will say
    members = tuple(_parse_member(part, text) for part in [*parts[:-1], ":".join(before) if before else parts[-1]])
    if not before:
        raise ConfigError(
            f"judge '{text}' names {len(members)} judges but not how they decide; end it in {_ENDINGS}. A path with + "
            "in it must be quoted."
        )
    _check_panel(members, rule.strip(), text)
    return JudgeSpec(members, rule.strip())


def canonical(text: str) -> str:
    """Return the one spelling of all texts that mean the same judge. Raises ConfigError if it cannot be parsed."""
    return str(parse_spec(text))


def respelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that name judges, in canonical spelling."""
    single = (key for key in ("judge", "confirm_judge") if settings.get(key))
    names: dict[str, Any] = {key: canonical(str(settings[key])) for key in single}
    second = settings.get("second_judges")
    if second and isinstance(second, list | tuple):  # a file's value may be anything
        names["second_judges"] = tuple(canonical(str(name)) for name in second)
    return names


def _check_panel(members: tuple[Member, ...], rule: str, text: str) -> None:
    if twice := next((name for name, num in Counter(map(str, members)).items() if num > 1), None):
        raise ConfigError(f"judge '{text}' names {twice} more than once; name each judge of a panel once.")
    if rule not in RULES:
        raise ConfigError(f"judge '{text}': {unknown_name('rule', rule, RULES)}")
    if len(members) == 1:
        raise ConfigError(f"judge '{text}' has a rule for several judges, but names one; write it without ':{rule}'.")
    if rule == "majority" and len(members) % 2 == 0:
        raise ConfigError(f"judge '{text}': a majority of {len(members)} judges may be a tie; name an odd number.")


def _parse_member(part: str, text: str) -> Member:
    """Parse one judge, a part of the whole spec `text`; an option that names a default is left out."""
    name, *brackets = _split(part, "(")
    name, inside = _unquote(name, text), brackets[0].rstrip() if brackets else ")"
    if not name or len(brackets) > 1 or not inside.endswith(")"):
        raise _unreadable(text)
    options: dict[str, str] = {}
    for written in filter(None, map(str.strip, _split(inside[:-1], ","))):
        option, is_given, value = written.partition("=")
        option, value = option.strip(), _unquote(value, text)
        if not is_given or not option or not value:
            raise ConfigError(f"judge '{text}': got the option '{written}', expected option=value.")
        if option in options:
            raise ConfigError(f"judge '{text}': the option '{option}' is given twice.")
        options[option] = value
    if options.get("part") == PARTS[0]:
        del options["part"]
    return Member(name, options)


def _unquote(written: str, text: str) -> str:
    item = written.strip()
    if item.startswith(_QUOTES):
        if item.find(item[0], 1) != len(item) - 1:
            raise ConfigError(f"judge '{text}': got {item}, expected quotes that open and close around all of it.")
        return item[1:-1]
    if "(" in item or ")" in item:
        raise _unreadable(text)
    return item


def _split(text: str, mark: str) -> Iterator[str]:
    depth, start = 0, 0
    for piece in _PIECE.finditer(text):
        letter = piece[0][0]
        if letter == mark and depth <= 0:
            yield text[start : piece.start()]
            start = piece.start() + 1
        depth += {"(": 1, ")": -1}.get(letter, 0)
    yield text[start:]


def _quoted(item: str, marks: str) -> str:
    """Return a name or a value, in quotes if it contains one of `marks`, a quote or outer white space."""
    is_plain = item == item.strip() and not {*marks, *_QUOTES} & {*item}
    quote = "" if is_plain else next((quote for quote in _QUOTES if quote not in item), "")
    return f"{quote}{item}{quote}"


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"judge '{text}' cannot be read; expected NAME, NAME(option=value, …) or NAME+NAME{_ENDINGS}; a name or value "
        "with brackets in it must be quoted."
    )


ENTRY_POINTS = "flipsearch.judges"


@dataclass(frozen=True, slots=True)
class OtherJudges:
    """The judges of a study besides the one that searches."""

    confirm: Judge | None = None
    """Decides on the confirm split; None: the judge that searches does."""
    second: tuple[Judge, ...] = ()
    """Get a column each, and decide nothing."""


def list_judges() -> dict[str, str]:
    """Return name -> description of all judges: what each is, what it needs, and whether that is here."""
    descriptions = {name: _describe(path) for name, path in _judge_files().items()}
    for entry in entry_points(group=ENTRY_POINTS):
        descriptions.setdefault(entry.name, f"from {entry.value}")
    return dict(sorted(descriptions.items()))


def load_judge(spec: str) -> Judge:
    """Return the judge or panel that a text names; the files of the judges are run."""
    parsed = parse_spec(spec)
    members = [_load_member(member) for member in parsed.members]
    return PanelJudge(members, parsed.rule) if parsed.rule else members[0]


def remaining_memory_share(*judges: Judge | None) -> float:
    """Return the share of vLLM's GPU memory that is left for a model; only one of the judges is loaded at a time."""
    return 1.0 - max(getattr(judge, "memory_share", 0.0) for judge in judges)


def unload(judge: Judge) -> None:
    """Unload a judge's model; it is loaded again when there is more to judge."""
    if close := getattr(judge, "close", None):
        close()


@contextmanager
def unload_after(*judges: Judge | None) -> Iterator[None]:
    """Unload the models of judges at the end of a block, even after an error."""
    with ExitStack() as stack:
        for judge in judges:
            if judge is not None:
                stack.callback(unload, judge)
        yield


def _load_member(member: Member) -> Judge:
    """Load one judge; every judge takes the option `part`: which part of a completion it is shown."""
    options = {name: value for name, value in member.options.items() if name != "part"}
    part = member.options.get("part", PARTS[0])
    if part not in PARTS:
        raise ConfigError(f"judge {member.name}, option part: {unknown_name('value', part, PARTS)}")
    judge_class, where = _find_class(member.name)
    judge = build_judge(judge_class, where, options)
    return judge if part == PARTS[0] else ThoughtJudge(judge)


def _find_class(name: str) -> tuple[Any, str]:
    if name.lower().endswith(".py") or "/" in name or "\\" in name:
        return load_class(_file_at(Path(os.path.expanduser(name)))), name
    files, entries = _judge_files(), {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in files:
        return load_class(files[name]), str(files[name])
    if name in entries:
        with plugin_errors_as(PluginError, f"judge '{name}' ({entries[name].value}) fails when loaded"):
            return entries[name].load(), f"entry point '{name}'"
    raise PluginError(unknown_name("judge", name, {*files, *entries}, "Or give the path of a judge file or folder."))


def _judge_files() -> dict[str, Path]:
    paths = sorted(content_folder("judges").iterdir())
    folders = {path.name: path / f"{path.name}.py" for path in paths if path.is_dir()}
    files = {path.stem: path for path in paths if path.suffix == ".py" and not path.stem.startswith("_")}
    return {name: path for name, path in folders.items() if path.is_file()} | files


def _file_at(path: Path) -> Path:
    """Return a judge file; in a folder it is the one named like the folder, or the only one."""
    if not os.path.isdir(path):  # os.path: a folder without permission raises nothing here
        return path
    files = sorted(file for file in path.glob("*.py") if not file.stem.startswith("_"))
    named = [file for file in files if file.stem == path.resolve().name]
    if len(files) != 1 and not named:
        names = ", ".join(file.name for file in files) or "none"
        raise PluginError(f"judge folder '{path}' must hold one judge file (.py) or {path.name}.py, got {names}.")
    return named[0] if named else files[0]


def _parse_class(path: Path) -> ast.ClassDef:
    """Return the one public class that a judge file defines, as syntax."""
    try:
        tree = ast.parse(read_text(path), filename=str(path))
    except FileNotFoundError:
        siblings = [sibling.name for sibling in path.parent.glob("*.py")]
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


def load_class(path: Path) -> Any:
    """Run a judge file and return its class. Raises PluginError, also for whatever the file raises."""
    class_name, path = _parse_class(path).name, path.resolve()
    module_name = f"flipsearch_judge_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise PluginError(f"judge file '{path}' must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # where dataclasses and pickling look a class's module up
    with plugin_errors_as(PluginError, f"judge file '{path}' fails when loaded"):
        module_spec.loader.exec_module(module)
        return getattr(module, class_name)


def _describe(path: Path) -> str:
    try:
        syntax = _parse_class(path)
    except PluginError as error:
        return f"cannot be used: {error}"
    summary = (ast.get_docstring(syntax) or "").partition("\n")[0]
    requirements = "; ".join(_requirements(_literals(syntax)))
    return f"{summary} [{requirements}]".strip() if requirements else summary.strip()


def _requirements(attributes: dict[str, Any]) -> Iterator[str]:
    """Yield what a judge needs and whether it is here, from the attributes needs_* of its class.

    needs_packages: names to import. needs_model: the hub model it takes by default. needs_checkpoint: the file in
    torch's folder of checkpoints it takes by default. needs_option: an option that must be given.
    """
    packages = attributes.get("needs_packages")
    packages = [str(package) for package in packages] if isinstance(packages, tuple) else []
    if missing := [package for package in packages if not find_spec(package.partition(".")[0] or "_")]:
        yield f"not installed: pip install {' '.join(missing)}"
    if model := attributes.get("needs_model"):
        try:
            is_here = isinstance(try_to_load_from_cache(str(model), "config.json"), str)
        except ValueError:  # not a hub id
            is_here = False
        yield f"needs {model}: {'here' if is_here else 'not downloaded yet'}, or model=PATH"
    if checkpoint := attributes.get("needs_checkpoint"):
        # Torch's own rule for its folder; importing torch only for it would slow down every listing.
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        torch_home = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser()
        is_here = (torch_home / "hub" / "checkpoints" / str(checkpoint)).is_file()
        yield f"needs {checkpoint}: {'here' if is_here else 'not downloaded yet'}, or checkpoint=PATH"
    if option := attributes.get("needs_option"):
        yield f"needs {option}=…"


def _literals(syntax: ast.ClassDef) -> dict[str, Any]:
    """Return the attributes of a class that are set to a literal constant or tuple."""
    attributes: dict[str, Any] = {}
    for node in syntax.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant | ast.Tuple):
            with suppress(ValueError):
                value = ast.literal_eval(node.value)
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                attributes |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return attributes
