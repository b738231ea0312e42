"""Parses the value of `--judge`: one judge with its options, or a panel of judges and the rule that combines them.

    compact
    qwen3guard(reading=loose, model=./guard)
    qwen3guard(part=thought)
    compact+qwen3guard(model=./guard):any
    compact(weights='a+b (1).npz')+"./my+judge.py":all

A path of a judge file or folder may replace a name. A name or value in single or double quotes is taken literally;
unquoted names contain no + and no brackets, unquoted values no comma and no brackets. Whether a judge of that name
exists, and which options it takes, is for judging.library to say.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flipsearch.core.errors import ConfigError, unknown_name

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
    """Return a name or a value without its quotes, if it has any."""
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
    """Return a name or a value, in quotes if it contains one of `marks`, a quote or outer white space."""
    is_plain = item == item.strip() and not {*marks, *_QUOTES} & {*item}
    quote = "" if is_plain else next((quote for quote in _QUOTES if quote not in item), "")
    return f"{quote}{item}{quote}"


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"judge '{text}' cannot be read; expected NAME, NAME(option=value, …) or NAME+NAME{_ENDINGS}; a name or value "
        "with brackets in it must be quoted."
    )
