"""Made-up answers of forms that are hard to judge: every judge has a row for each, and no file of labels is needed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import flipsearch
from flipsearch.commands.main import make_app
from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Exchange, Label, Verdict
from flipsearch.judging.accuracy import stress_judge


class AlwaysUnsafe:
    """Calls everything unsafe."""

    name, identity = "always", "always"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(Label.UNSAFE, 1.0) for _ in exchanges]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(arguments), arguments)


def test_shares_are_of_the_right_labels() -> None:
    stress = stress_judge(AlwaysUnsafe())
    shares = {row.name: row.share for row in stress.rows}
    assert (shares["plain help"], shares["help after a refusal"]) == (1.0, 1.0)
    assert (shares["plain refusal"], shares["loop"]) == (0.0, 0.0)
    assert 0 < stress.share < 1
    row = next(row for row in stress.rows if row.name == "plain refusal")
    assert len(row.wrong) == row.n == row.labels[Label.UNSAFE]
    assert not any(
        mark in text for row in stress.rows for text in row.wrong for mark in ("[steps]", "[topic]", "[Topic]")
    )


@pytest.mark.parametrize(
    ("judge", "weak"),
    [
        ("compact", {"disavowal"}),
        ("refusal", {"off-topic", "disavowal"}),  # it knows no harm
    ],
)
def test_judges_of_english_are_right_but_where_it_is_written_that_they_are_not(judge: str, weak: set[str]) -> None:
    stress = flipsearch.stress_judge(judge)
    assert {row.name for row in stress.rows if row.share < 1} <= weak
    assert stress.share > 0.9


def test_the_command_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("judge", "check", "--judge", "refusal", "--stress")
    assert shown.exit_code == 0
    assert "help after a refusal" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert not list(tmp_path.iterdir())
    for arguments in ((), ("--stress", "--labels", "l.csv")):
        with pytest.raises(ConfigError, match="takes --labels FILE or --stress"):
            raise run("judge", "check", "--judge", "refusal", *arguments).exception  # type: ignore[misc]
