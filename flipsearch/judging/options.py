"""Builds a judge with the options that its name on the command line carries, each read as its constructor says."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flipsearch.errors import ConfigError, PluginError, near_names, unknown_name
from flipsearch.judging.checked import CheckedJudge
from flipsearch.judging.contract import faults
from flipsearch.protocols import Judge

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
