"""What `--judge` says: a judge, with options if it takes any, or a panel of judges and how they decide.

    compact
    qwen3guard(reading=loose, model=./guard)
    compact+qwen3guard(model=./guard):any

A path of a judge file or folder stands where a name can.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flipsearch.errors import ConfigError, unknown_name

RULES = ("any", "all", "majority", "mean")
"""UNSAFE is what any judge calls so, all of them, more than half of them, or what has a mean p_unsafe of 0.5."""
_MEMBER = re.compile(r"\s*(?P<name>[^()]*?)\s*(?:\((?P<options>[^()]*)\))?\s*")


@dataclass(frozen=True, slots=True)
class Member:
    """One judge of a panel, or the only one."""

    name: str
    """A name, or the path of a judge file or folder."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What it is built with, as it was written."""


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """Which judges decide, and how."""

    members: tuple[Member, ...]
    """At least one."""
    rule: str = ""
    """One of RULES; "" where there is one judge."""


def parse_spec(text: str) -> JudgeSpec:
    """Return what a judge's name on the command line asks for. Raises ConfigError for what is none."""
    parts = list(_split(text, "+"))
    last, *rule = _split(parts[-1], ":")
    if len(parts) == 1 and (len(rule) != 1 or rule[0].strip() not in RULES):
        return JudgeSpec((_member(text, text),))  # a drive's colon, or a name that nobody knows: loading will tell
    members = tuple(_member(part, text) for part in [*parts[:-1], last])
    if len(rule) != 1:
        raise ConfigError(
            f"judge '{text}' names {len(members)} judges but not how they decide; end it in {_endings()}."
        )
    return JudgeSpec(members, _checked_rule(rule[0].strip(), members, text))


def _checked_rule(rule: str, members: tuple[Member, ...], text: str) -> str:
    if rule not in RULES:
        raise ConfigError(f"judge '{text}': {unknown_name('rule', rule, RULES)}")
    if len(members) == 1:
        raise ConfigError(f"judge '{text}' has a rule for several judges, but names one; write it without ':{rule}'.")
    if rule == "majority" and len(members) % 2 == 0:
        raise ConfigError(f"judge '{text}': a majority of {len(members)} judges may be a tie; name an odd number.")
    return rule


def _member(part: str, text: str) -> Member:
    found = _MEMBER.fullmatch(part)
    if found is None or not found["name"]:
        raise ConfigError(
            f"judge '{text}' cannot be read; expected NAME, NAME(option=value, …) or NAME+NAME{_endings()}."
        )
    return Member(found["name"], dict(_options(found["options"] or "", text)))


def _options(inside: str, text: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for part in filter(None, map(str.strip, inside.split(","))):
        name, is_given, value = part.partition("=")
        if not is_given or not name.strip() or not value.strip():
            raise ConfigError(f"judge '{text}': got the option '{part}', expected option=value.")
        if name.strip() in seen:
            raise ConfigError(f"judge '{text}': the option '{name.strip()}' is given twice.")
        seen.add(name.strip())
        yield name.strip(), value.strip()


def _split(text: str, mark: str) -> Iterator[str]:
    """Split at a mark outside of brackets."""
    depth, start = 0, 0
    for index, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == mark and depth <= 0:
            yield text[start:index]
            start = index + 1
    yield text[start:]


def _endings() -> str:
    return f":{', :'.join(RULES[:-1])} or :{RULES[-1]}"
