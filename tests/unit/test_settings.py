"""A setting is one field: its option, its help, its keyword in Python and its line in the stub are made from it."""

import ast
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flipsearch
from flipsearch.commands.main import make_app
from flipsearch.config import AnatomyConfig, EvalConfig, ModelConfig, ScoreConfig, SearchConfig, TrainConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.settings import command_line, flag_of
from flipsearch.settings import Given, takes
from stubs import COMMANDS_PAGE, commands_page, stub_text

COMMANDS: dict[str, tuple[type[ModelConfig], Any]] = {
    "search": (SearchConfig, flipsearch.search),
    "plan": (SearchConfig, flipsearch.plan),
    "score": (ScoreConfig, flipsearch.score),
    "train": (TrainConfig, flipsearch.train),
    "evaluate": (EvalConfig, flipsearch.evaluate),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_has_an_option_with_its_docstring_and_a_typed_keyword(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, function = COMMANDS[command]
    make_app([command])([command, "--help"], standalone_mode=False)
    printed = " ".join(capsys.readouterr().out.split())
    parameters = inspect.signature(function).parameters
    for name, field in kind.model_fields.items():
        flag = flag_of(kind, name)
        spelled = flag.metavar or "" if flag.is_argument else flag.names[0]
        assert (f"--no-{spelled[2:]}" if field.default is True else spelled) in printed
        assert field.description
        said = field.description.removesuffix(".")
        assert (said[1:] if field.default is True else said) in printed, name
        assert parameters[name].annotation not in (Any, inspect.Parameter.empty), name
        assert f"{name}: {field.description}" in (function.__doc__ or "")


def test_one_field_is_all_that_a_new_setting_takes() -> None:
    class ToyConfig(SearchConfig):
        """A search with one more setting."""

        patience: int = 3
        """Cohorts without a gain before the search ends."""

    @takes(ToyConfig)
    def toy(given: Given[ToyConfig]) -> int:
        """Return the setting."""
        return given.config().patience

    assert (toy(), toy(patience=5)) == (3, 5)
    assert "patience: int = 3" in str(inspect.signature(toy))
    with pytest.raises(ConfigError, match=r"--patience is 'x': .*integer"):
        toy(patience="x")
    with pytest.raises(ConfigError, match=r"unknown setting 'patienc'. Did you mean patience"):
        toy(patienc=5)


def test_keywords_win_over_the_file(tmp_path: Path) -> None:
    # A byte order mark, as some editors write it, changes nothing.
    (tmp_path / "s.toml").write_text('seed = 1\nharmful = ["a.csv"]\n', encoding="utf-8-sig")

    @takes(SearchConfig)
    def search(given: Given[SearchConfig]) -> SearchConfig:
        """Return the settings."""
        return given.config()

    result = search(config=tmp_path / "s.toml", seed=2, templates="role")
    assert (result.seed, result.harmful, result.templates) == (2, ("a.csv",), ("role",))


def test_the_stub_and_the_page_of_commands_are_up_to_date() -> None:
    """After a change of settings: python tools/stubs.py."""
    stub = Path(flipsearch.__file__).with_suffix(".pyi").read_text(encoding="utf-8")

    def statements(text: str) -> list[str]:
        return sorted(ast.dump(node) for node in ast.parse(text).body)

    assert statements(stub) == statements(stub_text())
    assert COMMANDS_PAGE.read_text(encoding="utf-8") == commands_page()


def test_a_type_checker_sees_the_settings() -> None:
    """mypy --strict, which runs before the tests, fails if a wrong call passes or a right one does not."""
    if TYPE_CHECKING:
        flipsearch.search(num_contexts=8, time_s="2h", harmful="a.csv")
        flipsearch.search(num_contexts="eight")  # type: ignore[arg-type]
        flipsearch.train()  # type: ignore[call-arg]
    annotation = inspect.signature(flipsearch.search).parameters["num_contexts"].annotation
    assert annotation is int


def test_a_printed_command_has_what_differs_from_the_defaults_and_nothing_else() -> None:
    config = AnatomyConfig(context="my text", count_flips=("refusal", "help"), depths=(4, 8))
    for settings in (config.model_dump(), json.loads(config.model_dump_json())):  # a file has lists for tuples
        options = command_line("flipsearch anatomy", AnatomyConfig, settings).split(" --")[1:]
        assert sorted(options) == ["context 'my text'", "count-flips refusal,help", "depth 4", "depth 8"]
