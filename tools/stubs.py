"""Writes flipsearch/__init__.pyi, in which editors and type checkers see every setting of every public function.

python tools/stubs.py        a test compares the file with the functions
"""

import inspect
import re
import subprocess
from pathlib import Path

import flipsearch

STUB = Path(flipsearch.__file__).with_suffix(".pyi")
HEAD = '''"""Written by tools/stubs.py from the settings in config.py."""

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


if __name__ == "__main__":
    STUB.write_text(stub_text(), encoding="utf-8")
    subprocess.run(["ruff", "format", "--quiet", str(STUB)], check=True)
