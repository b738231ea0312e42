"""What `--judge` says: a judge, with options if it takes any, or a panel of judges and how they decide.

    compact
    qwen3guard(reading=loose, model=./guard)
    qwen3guard(part=thought)
    compact+qwen3guard(model=./guard):any
    compact(weights='a+b (1).npz')+"./my+judge.py":all

A path of a judge file or folder stands where a name can. A name or a value in single or double quotes is taken as it
is; other names hold no + and no brackets, other values no comma and no brackets.

Builds a judge with the options that its name on the command line carries, each read as its constructor says.
"""

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flipsearch.core.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.core.protocols import Judge
from flipsearch.judging.contract import CheckedJudge, faults

RULES = ("any", "all", "majority", "mean")
"""UNSAFE is what any judge calls so, all of them, more than half of them, or what has a mean p_unsafe of 0.5."""
PARTS = ("answer", "thought")
"""Which part of a completion a judge is shown, by the option `part`; the first if it is not given."""
_QUOTES = ("'", '"')
_PIECE = re.compile(r"""(?:^|[+(,=])\s*(?:'[^']*'|"[^"]*")|.""", re.DOTALL)
"""A single character, or what a name or a value in quotes comes after, and all of it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One judge of a panel, or the only one."""

    name: str
    """A name, or the path of a judge file or folder."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What it is built with, as it was written."""

    def __str__(self) -> str:
        """Return how it is written, its options by name."""
        options = ", ".join(f"{name}={_quoted(value, ',()')}" for name, value in sorted(self.options.items()))
        return _quoted(self.name, "+:()") + (f"({options})" if options else "")


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """Which judges decide, and how."""

    members: tuple[Member, ...]
    """At least one."""
    rule: str = ""
    """One of RULES; "" where there is one judge."""

    def __str__(self) -> str:
        """Return how it is written: one text for all that mean the same."""
        return "+".join(map(str, self.members)) + (f":{self.rule}" if self.rule else "")


def parse_spec(text: str) -> JudgeSpec:
    """Return what a judge's name on the command line asks for. Raises ConfigError for what is none."""
    parts = list(_split(text, "+"))
    *before, rule = _split(parts[-1], ":")
    if len(parts) == 1 and (not before or rule.strip() not in RULES):
        return JudgeSpec((_member(text, text),))  # a drive's colon, or a name that nobody knows: loading will tell
    members = tuple(_member(part, text) for part in [*parts[:-1], ":".join(before) if before else parts[-1]])
    if not before:
        raise ConfigError(
            f"judge '{text}' names {len(members)} judges but not how they decide; end it in {_endings()}. A path with "
            "+ in it stands in quotes."
        )
    if twice := next((one for one, num in Counter(map(str, members)).items() if num > 1), None):
        raise ConfigError(f"judge '{text}' names {twice} more than once; name each judge of a panel once.")
    return JudgeSpec(members, _checked_rule(rule.strip(), members, text))


def canonical(text: str) -> str:
    """Return the one spelling of all texts that ask for the same judge. Raises ConfigError for what is none."""
    return str(parse_spec(text))


def respelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings that name judges, in their one spelling."""
    found: dict[str, Any] = {
        key: canonical(str(settings[key])) for key in ("judge", "confirm_judge") if settings.get(key)
    }
    if second := settings.get("second_judges"):
        found["second_judges"] = tuple(map(canonical, second))
    return found


def _checked_rule(rule: str, members: tuple[Member, ...], text: str) -> str:
    if rule not in RULES:
        raise ConfigError(f"judge '{text}': {unknown_name('rule', rule, RULES)}")
    if len(members) == 1:
        raise ConfigError(f"judge '{text}' has a rule for several judges, but names one; write it without ':{rule}'.")
    if rule == "majority" and len(members) % 2 == 0:
        raise ConfigError(f"judge '{text}': a majority of {len(members)} judges may be a tie; name an odd number.")
    return rule


def _member(part: str, text: str) -> Member:
    name, *options = _split(part, "(")
    name, inside = _item(name, text), options[0].rstrip() if options else ")"
    if not name or len(options) > 1 or not inside.endswith(")"):
        raise _unreadable(text)
    given = dict(_options(inside[:-1], text))
    return Member(name, {option: value for option, value in given.items() if (option, value) != ("part", PARTS[0])})


def _options(inside: str, text: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for part in filter(None, map(str.strip, _split(inside, ","))):
        name, is_given, written = part.partition("=")
        name, value = name.strip(), _item(written, text)
        if not is_given or not name or not value:
            raise ConfigError(f"judge '{text}': got the option '{part}', expected option=value.")
        if name in seen:
            raise ConfigError(f"judge '{text}': the option '{name}' is given twice.")
        seen.add(name)
        yield name, value


def _item(written: str, text: str) -> str:
    """Return a name or a value, out of its quotes if it stands in any."""
    item = written.strip()
    if item.startswith(_QUOTES):
        if item.find(item[0], 1) != len(item) - 1:
            raise ConfigError(f"judge '{text}': got {item}, expected quotes that open and close around all of it.")
        return item[1:-1]
    if "(" in item or ")" in item:
        raise _unreadable(text)
    return item


def _split(text: str, mark: str) -> Iterator[str]:
    """Split at a mark outside of brackets and quotes."""
    depth, start = 0, 0
    for piece in _PIECE.finditer(text):
        letter = piece[0][0]
        if letter == mark and depth <= 0:
            yield text[start : piece.start()]
            start = piece.start() + 1
        depth += {"(": 1, ")": -1}.get(letter, 0)
    yield text[start:]


def _quoted(item: str, marks: str) -> str:
    """Return how a name or a value is written that none of these marks may cut."""
    is_plain = item == item.strip() and not {*marks, *_QUOTES} & {*item}
    quote = "" if is_plain else next((one for one in _QUOTES if one not in item), "")
    return f"{quote}{item}{quote}"


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"judge '{text}' cannot be read; expected NAME, NAME(option=value, …) or NAME+NAME{_endings()}; what has "
        "brackets in it stands in quotes."
    )


def _endings() -> str:
    return f":{', :'.join(RULES[:-1])} or :{RULES[-1]}"


_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def build_judge(judge_class: Any, where: str, options: Mapping[str, str]) -> Judge:
    """Return the judge of a class; ConfigError for an option that it does not take, PluginError if it cannot be built.

    `where` says in errors which one it is.
    """
    with faults(PluginError, f"judge in {where} cannot be built"):
        return CheckedJudge(judge_class(**_read_options(judge_class, where, options)), where)


def _read_options(judge_class: Any, where: str, options: Mapping[str, str]) -> dict[str, Any]:
    if not options:
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [name for name, one in inspect.signature(judge_class).parameters.items() if one.kind in kinds]
    types = get_type_hints(judge_class.__init__)
    unknown = [name for name in options if name not in taken]
    if unknown and not taken:
        raise ConfigError(f"judge in {where} takes no options, got '{unknown[0]}'.")
    if unknown:
        hint = near_names(unknown[0], taken)
        raise ConfigError(f"judge in {where} has no option '{unknown[0]}'.{hint} It takes {', '.join(taken)}.")
    return {name: _read(types.get(name, str), value, f"{where}, option {name}") for name, value in options.items()}


def _read(wanted: Any, value: str, where: str) -> Any:
    """Read one value; of alternatives the first but None counts."""
    origin = get_origin(wanted)
    if origin is Literal:
        choices = {str(one): one for one in get_args(wanted)}
        if value not in choices:
            raise ConfigError(f"judge in {where}: {unknown_name('value', value, choices)}")
        return choices[value]
    if origin in (Union, UnionType):
        return _read(next(one for one in get_args(wanted) if one is not NoneType), value, where)
    if wanted is bool:
        if value.lower() not in _SWITCHES:
            raise ConfigError(f"judge in {where} is '{value}', expected true or false.")
        return _SWITCHES[value.lower()]
    if wanted in (int, float):
        try:
            return wanted(value)
        except ValueError:
            kind = "a whole number" if wanted is int else "a number"
            raise ConfigError(f"judge in {where} is '{value}', expected {kind}.") from None
    return Path(value) if wanted is Path else value
