"""Asking for help or importing the package loads no model library."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "optuna", "pandas", "scipy", "sqlalchemy", "jinja2")


HELP = """
import sys
sys.argv = ['flipsearch', *{arguments}]
from flipsearch.commands.main import main
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "import flipsearch",
        "import flipsearch.commands.main",
        HELP.format(arguments=["--help"]),
        HELP.format(arguments=["search", "--help"]),
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    probe = f"{code}\nimport sys; print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("what", ["contexts", "attacks", "prompts"])
def test_a_list_loads_no_model_library(what: str) -> None:
    shown = "print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    probe = f"{HELP.format(arguments=['list', what])}\n{shown}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "set()"


def test_public_names_are_sorted_and_exist() -> None:
    import flipsearch

    assert flipsearch.__all__ == sorted(flipsearch.__all__)
    for name in flipsearch.__all__:
        assert getattr(flipsearch, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    import flipsearch

    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        getattr(flipsearch, "serach")  # noqa: B009
