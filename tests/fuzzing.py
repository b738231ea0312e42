"""Mangled files and options for every command: what each gives must be an exit code of the house and one line.

    case(seed)  -->  a copy of a finished study, one thing in it mangled, and the command that reads it

Run by tests/integration/test_fuzz.py with a few seeds; `python -m tests.fuzzing FIRST LAST` runs more.
"""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from typer.main import get_command

from flipsearch.api import training
from flipsearch.commands.main import main, make_app
from flipsearch.core.errors import TrainingError
from flipsearch.core.files import PACKAGE, content_folder

MODEL = ("--backend", "scripted", "--model", "replies.json", "--judge", "refusal")
PROMPTS = ("--harmful", "harmful.csv", "--benign", "benign.csv")
SEARCH = ("search", *MODEL, *PROMPTS, "--study", "s", "--contexts", "mine.j2", "--template", "mine", "--breed", "0",
          "--num-contexts", "2", "--cohort-size", "2", "--depth", "0")  # fmt: skip
SCORE = ("score", "context.txt", *MODEL, *PROMPTS, "--study", "scored")
TRAIN = ("train", "--context", "best.txt", "--model", "pocket", "--max-steps", "1")
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 10**400, 1e308, float("inf"), float("nan"), "", " ", "x" * 5000, "\ud800", "\0", "\u202e",
    "../x", [], {}, [[]], {"a": [None]}, "{{ 7*7 }}", "http://127.0.0.1:9/v1#m", "ünï", "=1+1", ["a", 1], "１",
)  # fmt: skip
ODD_BYTES = (b"", b"\xff\xfe", b"\0" * 40, b"[" * 100_000, b"1e400", b"9" * 5000, b"null", b"[]", b"{}", b'"\\ud800"',
             b"\xef\xbb\xbf{}", b"SQLite format 3\0", b"{#\n#}", b"a,b\n1", b"x = 1e999", b"\r", b"NaN")  # fmt: skip
TARGETS: dict[str, list[tuple[str, ...]]] = {
    "reports/s/study.json.gz": [("report", "s"), ("judge", "label", "s", "--to", "new.csv"), ("ledger", "check", "s"),
                             ("judge", "check", "--judge", "refusal", "--labels", "labels.csv")],
    "reports/s/study.toml": [SEARCH, ("judge", "label", "s", "--to", "new.csv")],
    "reports/s/ledger.db": [("ledger", "check", "s"), ("ledger", "export", "s"), SEARCH, ("report", "s"),
                            ("ledger", "export", "s", "--to", "new.csv"), ("judge", "label", "s", "--to", "new.csv"),
                            ("ledger", "export", "s", "--to", "new.parquet"), ("plan", *SEARCH[1:])],
    "reports/s/events.jsonl": [SEARCH],
    "reports/s/labels.json": [("report", "s"), ("judge", "label", "s", "--to", "new.csv"),
                              ("judge", "check", "--judge", "refusal", "--labels", "labels.csv"), SEARCH],
    "reports/_judges/*": [("report", "s"), ("judge", "check", "--judge", "refusal", "--labels", "labels.csv"), SEARCH],
    "best.txt": [TRAIN, ("score", "best.txt", *MODEL, *PROMPTS)],
    "best.json": [TRAIN, ("score", "best.json", *MODEL, *PROMPTS), ("train", "--context", "best.json")],
    "best.portfolio.json": [("train", "--context", "best.portfolio.json", "--model", "pocket"),
                            ("score", "best.portfolio.json", *MODEL, *PROMPTS)],
    "context.txt": [SCORE],
    "labels.csv": [("judge", "check", "--judge", "refusal", "--labels", "labels.csv"),
                   ("judge", "fit", "--labels", "labels.csv", "--to", "w.npz")],
    "mine.j2": [("list", "contexts", "--contexts", "mine.j2"), ("score", "mine", *MODEL, *PROMPTS, "--contexts", "."),
                ("plan", *MODEL, *PROMPTS, "--contexts", "mine.j2", "--template", "mine")],
    "settings.toml": [("plan", "--config", "settings.toml"), ("search", "--config", "settings.toml"),
                      ("train", "--config", "settings.toml"), ("evaluate", "ckpt", "--config", "settings.toml")],
    "harmful.csv": [("plan", *SEARCH[1:]), SCORE],
    "replies.json": [SCORE],
    "ckpt/training.json": [("evaluate", "ckpt"), ("list", "models"), ("plan", "--model", "ckpt")],
    "ckpt/config.json": [("plan", "--model", "ckpt"), ("evaluate", "ckpt")],
    "ckpt/model.safetensors": [("plan", "--model", "ckpt"), ("evaluate", "ckpt")],
    "weights.npz": [("judge", "check", "--judge", "compact(weights=weights.npz)", "--labels", "labels.csv")],
    "judge.py": [("judge", "check", "--judge", "judge.py", "--labels", "labels.csv")],
}  # fmt: skip
COMMANDS: tuple[tuple[str, ...], ...] = (
    SEARCH, SCORE, ("plan", *SEARCH[1:]), TRAIN, ("check", *SCORE[1:], "--min-flip", "0.1"), ("evaluate", "ckpt"),
    ("report", "s"), ("list", "contexts"), ("judge", "check", "--judge", "refusal", "--labels", "labels.csv"),
    ("judge", "label", "s", "--to", "new.csv"), ("judge", "fit", "--labels", "labels.csv", "--to", "new.npz"),
    ("ledger", "check", "s"), ("ledger", "export", "s", "--to", "new.csv"),
)  # fmt: skip
ODD_FLAGS = (
    "", " ", "-1", "0", "1e400", "9" * 5000, "nan", "inf", "x" * 300, "a/" * 3000, "../x", "a/b", ".", "..", "/",
    "loop", "\ud800", "a\0b", "\u202e", "１", "reports", "best.txt", "labels.csv", "ckpt", "compact(", "refusal+",
    "a(b=c)+d:any",
    "/dev/null", "/proc/self/mem", "~", "=", "harmful.csv:nope", "{{x}}", "judge.py(x=1)", "http://[", "a@b@c", "5x",
)  # fmt: skip


LONGEST_LINE = 2000


def quiet_run(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process and return its exit code, stdout and stderr."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["flipsearch", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        code = -1
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def make_material(folder: Path) -> None:
    """Make a finished study and the other files that commands read, in the current folder."""
    for kind, asks in (("harmful", "steal bike"), ("benign", "bake cake")):
        lines = [f"how do I {asks} number {i} in town {i * 7}?" for i in range(12)]
        (folder / f"{kind}.csv").write_text("prompt,category\n" + "".join(f"{line},c\n" for line in lines))
    sure, sorry = "Sure, here is how. Step 1: go there. Step 2: take it.", "I'm sorry, but I can't help with that."
    replies = [{"prompt": "*", "completion": sure}]
    replies += [{"prompt": "*", "context": f"{word} harm.", "completion": sorry} for word in ("never", "do not")]
    replies += [{"prompt": line, "completion": sure} for line in lines]  # the benign ones
    (folder / "replies.json").write_text(json.dumps(replies))
    (folder / "context.txt").write_text("Never help with harm.\n")
    (folder / "mine.j2").write_text(
        '{#\ndescription = "d"\nsource = "s"\naxes = ["strength"]\n[params]\nx = ["never", "do not"]\n#}\n'
        "{{ x }} harm.\n"
    )
    (folder / "settings.toml").write_text(
        'harmful = "harmful.csv"\nbenign = ["benign.csv"]\nseed = 1\nmax_tokens = 9\n'
    )
    (folder / "judge.py").write_text(
        "from flipsearch.core.records import Label, Verdict\n\n\nclass Mine:\n"
        "    name = 'mine'\n    identity = 'mine-1'\n\n"
        "    def judge(self, exchanges):\n        return [Verdict(Label.SAFE, 0.5) for _ in exchanges]\n"
    )
    shutil.copytree(PACKAGE / "pocket", folder / "ckpt")
    (folder / "ckpt" / "training.json").write_text(json.dumps({"format": 1, "model": "pocket"}))
    shutil.copy(content_folder("judges") / "compact.npz", folder / "weights.npz")
    code, _, err = quiet_run(*SEARCH)
    assert code in (0, 1), err
    code, _, err = quiet_run("judge", "label", "s", "--to", "labels.csv", "--num", "8")
    assert code == 0, err
    rows = (folder / "labels.csv").read_text(encoding="utf-8-sig").splitlines()
    labelled = [line.replace('""', '"safe"' if i % 2 else '"unsafe"', 1) for i, line in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join(labelled) + "\n")
    code, _, err = quiet_run("judge", "check", "--judge", "refusal", "--labels", "labels.csv")
    assert code == 0, err


def mangle(path: Path, rng: random.Random) -> str:
    """Change a file in one of many ways, and return what was done."""
    content = path.read_bytes()
    if not content:  # e.g. a lock
        path.write_bytes(rng.choice(ODD_BYTES))
        return "bytes"
    ways = ["bytes", "cut", "flip", "insert", "swap", "folder", "loop", "gone"]
    ways += ["value"] * 12 * (path.suffix in (".json", ".gz", ".db", ".toml", ".csv"))
    way = rng.choice(ways)
    if way == "bytes":
        path.write_bytes(rng.choice(ODD_BYTES))
    elif way == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif way == "flip":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 50))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
    elif way == "insert":
        at = rng.randrange(len(content) + 1)
        path.write_bytes(content[:at] + rng.choice(ODD_BYTES) + content[at:])
    elif way == "swap":
        others = [other for other in Path().rglob("*") if other.is_file() and other != path]
        path.write_bytes(rng.choice(sorted(others)).read_bytes())
    elif way in ("folder", "loop", "gone"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "loop":
            path.symlink_to(path.name)
    elif path.suffix == ".json":
        return f"value: {_mangle_json(path, content, rng)}"
    elif path.suffix == ".gz":
        done = _mangle_json(path, gzip.decompress(content), rng)
        path.write_bytes(gzip.compress(path.read_bytes()))
        return f"value: {done}"
    elif path.suffix == ".db":
        return f"value: {_mangle_database(path, rng)}"
    else:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines))
        key = lines[at].partition("=" if path.suffix == ".toml" else ",")[0]
        value = rng.choice(ODD_VALUES)
        written = json.dumps(value) if rng.random() < 0.5 else str(value)
        lines[at] = f"{key} = {written}" if path.suffix == ".toml" else f"{key},{written}"
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        return f"line {at}: {lines[at]!r:.60}"
    return way


def _mangle_json(path: Path, content: bytes, rng: random.Random) -> str:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places:
        path.write_text(json.dumps(rng.choice(ODD_VALUES)))
        return "all"
    node, key = rng.choice(places[: 40 if rng.random() < 0.5 else None])
    odd = rng.choice(ODD_VALUES)
    if isinstance(node, dict) and rng.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and rng.random() < 0.1:
        node["\ud800" if rng.random() < 0.5 else "extra"] = odd
    else:
        node[key] = odd
    path.write_text(json.dumps(value))
    return f"{key} = {odd!r:.40}"


def _mangle_database(path: Path, rng: random.Random) -> str:
    connection = sqlite3.connect(path)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column = rng.choice(columns)
        value = rng.choice((None, -1, 2**62, 1.5, float("inf"), "", "x", "ü" * 99, b"", b"\xff\0", b"1234", "safe", 0))
        statement = rng.choice((
            f"UPDATE {table} SET {column} = ?",
            f"UPDATE {table} SET {column} = ? WHERE rowid IN (SELECT rowid FROM {table} LIMIT 1)",
            f"DELETE FROM {table} WHERE {column} IS NOT ?",
            f"ALTER TABLE {table} RENAME TO other{'' if value else ' '} -- ?",
            f"ALTER TABLE {table} DROP COLUMN {column} -- ?",
        ))  # fmt: skip
        with contextlib.suppress(sqlite3.Error), connection:
            connection.execute("PRAGMA writable_schema = ON")
            if rng.random() < 0.5:  # without constraints anything can be stored
                connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
        with contextlib.suppress(sqlite3.Error), connection:
            connection.execute(statement, (value,) if "-- ?" not in statement else ())
        return f"{statement} {value!r:.30}"
    finally:
        connection.close()


def options_of(command: Sequence[str]) -> list[str]:
    """Return the options of a command, as its parser has them."""
    parser: Any = get_command(make_app(command))
    for word in command[:2]:
        parser = getattr(parser, "commands", {}).get(word, parser)
    return sorted(name for parameter in parser.params for name in parameter.opts if name.startswith("--"))


def reached(*_: object, **__: object) -> None:
    """Stand for the work of a command that has read all of its files."""
    raise TrainingError("reached")


@contextlib.contextmanager
def in_copy(material: Path) -> Iterator[Path]:
    """Work in a copy of the material."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "w"
        shutil.copytree(material, folder, symlinks=True)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run_case(seed: int, material: Path) -> tuple[str, int, str, str]:
    """Run the case of a seed; return what was done, and the exit code, stdout and stderr."""
    rng = random.Random(seed)
    with in_copy(material) as folder:
        if rng.random() < 0.75:
            target = rng.choice(list(TARGETS))
            files = sorted(folder.glob(target))
            path = rng.choice(files) if files else folder / target
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.write_bytes(rng.choice(ODD_BYTES))
            command = rng.choice(TARGETS[target])
            done = f"{target}: {mangle(path, rng)}"
        else:
            (folder / "loop").symlink_to("loop")
            command, value = rng.choice(COMMANDS), rng.choice(ODD_FLAGS)
            command, done = (*command, rng.choice(options_of(command)), value), "option"
            if rng.random() < 0.15:
                words = list(command)
                words[rng.randrange(len(words))] = value
                command = tuple(words)
        if rng.random() < 0.2:
            command = (*command, "--json")
        with patch.object(training, "run_training", reached), patch.object(training, "run_evaluation", reached):
            code, out, err = quiet_run(*command)
    return f"seed {seed}: {' '.join(command)!r:.150} | {done}", code, out, err


def fault_of(code: int, err: str) -> str | None:
    """Return what is wrong with how a command ended; None if nothing is."""
    lines = [line for line in err.splitlines() if line.startswith("flipsearch: ")]
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in err:
        return "a traceback"
    if code == 2 and len(lines) != 1:
        return "not one line"
    if code == 2 and len(lines[0]) > LONGEST_LINE:
        return f"a line of {len(lines[0])} characters"
    return None


if __name__ == "__main__":
    first, last = map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        make_material(Path(place))
        codes: Counter[int] = Counter()
        for number in range(first, last):
            what, code, _, err = run_case(number, Path(place))
            codes[code] += 1
            if fault := fault_of(code, err):
                print(what.encode("ascii", "backslashreplace").decode(), "->", fault, err[-300:].strip(), flush=True)
        print(dict(codes))
