"""Standard streams of every kind, and what the system refuses: results are never lost to how they are printed."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flipsearch.commands import main as command_line
from flipsearch.commands.console import progress_display, show_error
from tests.fuzzing import quiet_run

NOISY = """import os
from flipsearch.core.records import Label, Verdict

print("imported")


class Noisy:
    name = "noisy"
    identity = "noisy-1"

    def judge(self, exchanges):
        print("judging")
        os.write(1, b"to the descriptor")
        return [Verdict(Label.UNSAFE, 0.9) for _ in exchanges]
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flipsearch", *arguments])
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    return int(stop.value.code or 0)


def test_a_judge_that_prints_does_not_spoil_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    (tmp_path / "labels.csv").write_text("prompt,response,label\n" + "how?,so,unsafe\n" + "why?,no,safe\n" * 3)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "judge", "check", "--judge", "noisy.py", "--labels", "labels.csv", "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["judge"] == "noisy"
    assert {"imported", "judging"} <= set(err.split())
    assert "to the descriptor" in err


@pytest.mark.parametrize(
    "command", [("doctor", "--judge", "noisy.py"), ("judge", "check", "--judge", "noisy.py", "--stress")]
)
def test_no_command_lets_a_judge_print_into_its_result(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *command, "--json") == 0
    out, err = capfd.readouterr()
    assert isinstance(json.loads(out), dict)
    assert "to the descriptor" in err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_terminal_that_lacks_characters_gets_replacements(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(monkeypatch, "list", "contexts", *flags) == 0
    text = stream.buffer.getvalue().decode("ascii")
    assert "\u2013" not in text
    assert "constitution" in text
    if flags:
        assert "\u2026" in json.dumps(json.loads(text), ensure_ascii=False) or "\\u" not in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(monkeypatch, "list", "prompts") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flipsearch: the output cannot be read or written: No space left on device.")


@pytest.mark.skipif(sys.platform == "win32", reason="no descriptors to close here")
def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m flipsearch list nonsense <&- >&- 2>err; echo $? >code"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "code").read_text().strip() == "2"
    assert (tmp_path / "err").read_text().startswith("flipsearch: unknown list 'nonsense'")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("report", "\udcff"), "argument 2 is '\\udcff'"),
        (("report", "a\0b"), "argument 2 is 'a\\x00b'"),
        (("report", "x" * 5000), "File name too long"),
        (("plan", "--study", "../x"), "--study is '../x': expected the name of a folder, no path"),
        (("plan", "--study", "a/b"), "--study is 'a/b'"),
        (("plan", "--study", ""), "--study is ''"),
        (("plan", "--reports", "--seed"), "--reports is '--seed', which is an option"),
        (("search", "--study", "a\u202eb"), "--study is 'a\\u202eb'"),
        (("search", "--best", "settings.toml/best.txt"), "its folder cannot be written"),
        (("plan", "--config", "settings.toml"), "--reports is 'a\\x00b'"),
        (("plan", "--config", "digits.toml"), "digits.toml: cannot be read as TOML"),
        (("plan", "--config", "deep.toml"), "deep.toml: cannot be read as TOML"),
        (("plan", "--config", "endless.toml"), "longer than 64 MB"),
    ],
)
def test_names_that_nothing_can_have_are_refused_before_any_work(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text('reports = "a\\u0000b"\n')
    (tmp_path / "digits.toml").write_text("seed = " + "9" * 5000)
    (tmp_path / "deep.toml").write_text("seed = " + "[" * 100_000)
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    code, out, err = quiet_run(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert expected in line
    assert {path.suffix for path in tmp_path.iterdir()} == {".toml"}


@pytest.mark.parametrize("command", [("list", "contexts"), ("list", "prompts", "--json")])
def test_a_reader_that_leaves_changes_no_exit_code(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().err == ""


def test_progress_that_nobody_reads_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        done = []
        with progress_display() as progress:
            for part in ("a", "b"):
                progress.show_lines([part])
                done.append(part)
        show_error("something", 2, as_json=False)
    assert done == ["a", "b"], "the work goes on"
