"""Writes what is made from the settings: flipsearch/__init__.pyi for editors and type checkers, and docs/commands.md.

python tools/stubs.py        a test compares both with the functions and commands
"""

import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import flipsearch
from flipsearch.commands.main import COMMANDS, EPILOG, EXAMPLES, FALLS_SHORT, GROUPS, make_app
from flipsearch.commands.options import FIRST, help_record

STUB = Path(flipsearch.__file__).with_suffix(".pyi")
HEAD = '''"""Written by tools/stubs.py from the settings in config/."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TextIO

'''


def stub_text() -> str:
    """Return the stub: classes are imported from where they are defined, functions are spelled out."""
    imports, functions = set(), []
    for name in flipsearch.__all__:
        public = getattr(flipsearch, name)
        if inspect.isclass(public):
            imports.add(f"from {public.__module__} import {name} as {name}")
            continue
        text = f"def {name}{signature_text(inspect.signature(public))}: ..."
        imports |= {f"from {module} import {used} as {used}" for module, used in re.findall(QUALIFIED, text)}
        functions.append(re.sub(QUALIFIED, r"\2", text))
    names = ", ".join(f'"{name}"' for name in flipsearch.__all__)
    return HEAD + "\n".join([*sorted(imports), "", "__version__: str", f"__all__ = [{names}]", "", *functions]) + "\n"


QUALIFIED = r"(flipsearch(?:\.[a-z_]+)+)\.(\w+)"


def signature_text(signature: inspect.Signature) -> str:
    """Return a signature as source, its annotations with the names that the stub imports."""
    parameters = [
        parameter.replace(default=str(parameter.default)) if isinstance(parameter.default, Path) else parameter
        for parameter in signature.parameters.values()
    ]
    text = re.sub(r"(collections\.abc|pathlib|typing)\.", "", str(signature.replace(parameters=parameters)))
    return re.sub(r"Optional\[(Literal\[[^]]*\])\]", r"\1 | None", text)


COMMANDS_PAGE = Path(flipsearch.__file__).parents[1] / "docs" / "commands.md"


def commands_page() -> str:
    """Return docs/commands.md: every command with its example, when it exits with 1, and all its options."""
    root: Any = get_command(make_app(list(COMMANDS)))
    exit_codes = " ".join(EPILOG.removeprefix("\b").split())
    made = "Written by `tools/stubs.py`; `--help` says the same. `--json` makes a command print one JSON object alone."
    parts = ["# Commands", made, exit_codes]
    shown: dict[str, str] = {}
    for name in COMMANDS:
        parts += command_section(name, root.commands[name], shown)
    for group, (_, members) in GROUPS.items():
        for name in members:
            parts += command_section(f"{group} {name}", root.commands[group].commands[name], shown)
    return "\n\n".join(parts) + "\n"


def command_section(name: str, command: Any, shown: dict[str, str]) -> Iterator[str]:
    """Yield the paragraphs about a command: what it does, an example, a table of options by group.

    A table that was `shown` under another command is not repeated.
    """
    yield f"## {name}"
    yield from (" ".join(paragraph.split()) for paragraph in inspect.cleandoc(command.help).split("\n\n"))
    yield "    " + EXAMPLES[name]
    if name in FALLS_SHORT:
        yield f"Exit code 1: {FALLS_SHORT[name]}."
    groups: dict[str, list[str]] = {}
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.get_params(context):
        if (record := help_record(parameter, context)) and parameter.name not in ("json", "help"):
            heading = getattr(parameter, "rich_help_panel", None) or FIRST
            option, text = (part.replace("|", "\\|") for part in record)
            groups.setdefault(heading, []).append(f"| `{option}` | {text.replace('<', '&lt;')} |")
    for heading, rows in groups.items():
        table = "\n".join([f"| {heading} | |", "|---|---|", *rows])
        first = shown.setdefault(table, name)
        yield table if first == name else f"{heading}: as of [{first}](#{first.replace(' ', '-')})."


if __name__ == "__main__":
    COMMANDS_PAGE.write_text(commands_page(), encoding="utf-8")
    STUB.write_text(stub_text(), encoding="utf-8")
    subprocess.run(["ruff", "format", "--quiet", str(STUB)], check=True)
