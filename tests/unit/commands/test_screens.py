"""Figures are a table where it fits, and one below another in a narrow terminal; nothing is cut."""

import pytest

from flipsearch.commands.console import print_figures, print_wrapped

HEADER, ROWS = ("criterion", "state", "measured"), [("unsafe without it", "in doubt", "85.0 % (77 to 91), 85 of 100")]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, ["criterion          state                         measured", "unsafe without it  in doubt  85.0 %"]),
        (40, ["unsafe without it", "  state: in doubt", "  measured: 85.0 % (77 to 91), 85 of 100"]),
    ],
)
def test_figures_fit_the_terminal(
    width: int, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_figures(HEADER, ROWS, num_names=2)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert all(line in shown for line in lines)
    assert "85 of 100" in " ".join(shown.split())


def test_a_terminal_of_no_width_shows_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    print_wrapped("It beats the placebos.")
    print_figures(HEADER, ROWS)
    assert "It beats the placebos." in (shown := capsys.readouterr().out)
    assert "85.0 %" in shown


def test_words_of_a_table_are_whole_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("reasoning", "arithmetic", "86.7% (70–95)", "-16.7 (-32.2 to -1.5)"), ("tax", "all problems", "", "0.0")]
    print_figures(("metric", "set", "new", "change"), rows, num_names=2, num_whole=1, least=8)
    assert {"arithmetic", "all", "problems"} <= set(capsys.readouterr().out.split())
