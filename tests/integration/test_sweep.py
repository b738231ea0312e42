"""`flipsearch sweep` on the pocket model: a grid of small trainings, continued after a kill, and never made twice."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flipsearch
from flipsearch.core.errors import FlipsearchError, TrainingStoppedError
from flipsearch.training.processes import StopSignals
from tests.integration.test_cli import one_line_error, run

sweeping: Any = sys.modules[flipsearch.sweep.__module__]
SMALL = (
    "--max-prompts", "4", "--max-tokens", "32", "--train-batch-size", "4", "--max-steps", "2", "--name", "small",
)  # fmt: skip
CONTEXTS = ("--context", "plain_rule", "--seeds", "1")


def test_a_sweep_continues_is_never_made_twice_and_grows(tmp_path: Path) -> None:
    planned = run("sweep", *CONTEXTS, *SMALL, "--plan", cwd=tmp_path)
    assert "trainings 2: 2 contexts x 1 method x 1 data size x 1 seed, 0 finished" in planned.stdout
    assert "trainings" not in planned.stderr
    facts = json.loads(run("sweep", *CONTEXTS, *SMALL, "--plan", "--json", cwd=tmp_path).stdout)
    assert ([training["num_steps"] for training in facts["trainings"]], facts["num_finished"]) == ([2, 2], 0)
    assert not (tmp_path / "reports").exists()
    first = json.loads(run("sweep", *CONTEXTS, *SMALL, "--json", cwd=tmp_path).stdout)
    folder = tmp_path / "reports" / "sweeps" / "small"
    assert [swept["is_placebo"] for swept in first["contexts"]].count(True) == 1
    assert len(first["runs"]) == first["num_planned"] == 2
    assert {run["num_steps"] for run in first["runs"]} == {2}
    assert all(0 <= run["harm"] <= 1 for run in first["runs"])
    page = (folder / "sweep.html").read_text(encoding="utf-8")
    assert "too few to say what predicts harm" in page
    # Killed during one training, and during the evaluation of the other.
    for file in (folder / "runs").iterdir():
        file.unlink()
    shutil.rmtree(min((folder / "checkpoints").iterdir()))
    made = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").rglob("model.safetensors")}
    again = json.loads(run("sweep", *CONTEXTS, *SMALL, "--json", cwd=tmp_path).stdout)
    assert [run["harm"] for run in again["runs"]] == [run["harm"] for run in first["runs"]]
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    # A checkpoint that was damaged by hand is named, and ends no other training.
    broken = min((folder / "checkpoints").iterdir())
    kept = {file: file.read_bytes() for file in (broken / "config.json", folder / "runs" / f"{broken.name}.json")}
    (broken / "config.json").write_text("{}", encoding="utf-8")
    (folder / "runs" / f"{broken.name}.json").rename(folder / "runs" / "another.json")
    damaged = run("sweep", *CONTEXTS, *SMALL, cwd=tmp_path, code=1)
    assert "is damaged, remove it: the same command trains it again." in " ".join(damaged.stdout.split())
    assert "Finished trainings of other settings in" in damaged.stdout
    assert len(json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]) == 1
    (folder / "runs" / "another.json").unlink()
    for file, content in kept.items():
        file.write_bytes(content)
    # Half of the data is as many steps on the first half of the prompts of each kind.
    more = run("sweep", *CONTEXTS, *SMALL, "--data-sizes", "1,0.5", "--drop-weights", cwd=tmp_path)
    assert "trainings 4: 2 contexts x 1 method x 2 data sizes x 1 seed, 2 finished" in more.stderr
    runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
    assert {run["num_steps"] for run in runs} == {2}
    assert {run["data_share"]: run["num_prompts"] for run in runs}[0.5] < runs[0]["num_prompts"]
    assert not list((folder / "checkpoints").rglob("model.safetensors"))
    # An edited result is no result, and an edited context is not what is trained under.
    edited = min((folder / "runs").iterdir())
    edited.write_text(edited.read_text(encoding="utf-8").replace('"harm": ', '"harm": 9'), encoding="utf-8")
    for file in (folder / "contexts").iterdir():
        file.write_text('{"text": "Say yes to all.", "placement": "before"}', encoding="utf-8")
    run("sweep", *CONTEXTS, *SMALL, "--data-sizes", "1,0.5", "--drop-weights", cwd=tmp_path)
    assert json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"] == runs


@pytest.mark.parametrize("part", ["anatomy", "train", "evaluate"])
def test_a_signal_that_stops_a_part_stops_the_sweep(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def stop(**_: Any) -> Any:
        started.append(part)
        with StopSignals() if part == "train" else nullcontext():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(9)

    trained = SimpleNamespace(run=None)
    for name in ("anatomy", "train", "evaluate"):
        monkeypatch.setattr(sweeping, name, stop if name == part else lambda **_: trained)
    if part != "anatomy":
        monkeypatch.setattr(sweeping, "_measured", lambda *_: None)
    with pytest.raises(TrainingStoppedError, match="stopped by SIGUSR1"):
        flipsearch.sweep(context="role", reports=tmp_path)
    assert started == [part]


def test_a_training_that_cannot_be_made_is_left_out_with_a_note(tmp_path: Path) -> None:
    # Eight tokens end no answer of the pocket model: no answer is kept, and nothing can be fine-tuned on.
    done = run(
        "sweep",
        *CONTEXTS[:2],
        *SMALL,
        "--max-tokens",
        "8",
        "--seeds",
        "1",
        "--methods",
        "opsa,sft-self",
        cwd=tmp_path,
        code=1,
    )
    assert "Note: Not trained: plain_rule, sft-self, 100 % of the prompts, seed 0: none of the" in " ".join(
        done.stdout.split()
    )
    assert (tmp_path / "reports" / "sweeps" / "small" / "sweep.csv").read_text().count("opsa") == 2


@pytest.mark.parametrize(("given", "said"), [
    ((), "sweep takes --study NAME or several --context FILE, got neither"),
    (("--context", "role", "--study", "x"), "got both"),
    (("--study", "nothing"), "unknown study 'nothing'"),
    (("--context", "role", "--num-contexts", "3"), "--num-contexts chooses among those of a --study"),
    (("--context", "role", "--methods", "opsa,sft"), "unknown training method 'sft'"),
    (("--context", "role", "--methods", "sft-teacher"), "--method sft-teacher was given without a teacher"),
    (("--context", "role", "--teacher", "smollm2"), "--methods opsa need none"),
    (("--context", "role", "--data-sizes", "0.5,2"), "--data-sizes is '2'"),
    (("--context", "role", "--data-sizes", "half"), "--data-sizes is 'half'"),
    (("--context", "role", "--seeds", "0"), "--seeds is"),
    (("--context", "role", "--split", "all"), "--split all trains on the evaluation prompts"),
    (("--context", "rol"), "unknown context template 'rol'"),
    (("--context", "role", "--name", "a/b"), "--name is 'a/b'"),
    (("--context", "Think first.", "--model", "nowhere/at/all"), "nowhere/at/all"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(given: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in one_line_error("sweep", *given, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_from_python_shares_are_numbers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"context": "role", "data_sizes": [0.5, 1], "reports": tmp_path, "plan_only": True}
    plans: list[Any] = []
    assert flipsearch.sweep(**settings, on_plan=plans.append) is None
    assert [training.data_share for training in plans[0].trainings] == [0.5, 0.5, 1.0, 1.0] * 3
    assert len({training.identity for training in plans[0].trainings}) == 12
    with pytest.raises(FlipsearchError, match="data-sizes is '0'"):
        flipsearch.sweep(**{**settings, "data_sizes": 0})
