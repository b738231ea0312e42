"""What a user sees of `flipsearch doctor`: every check of a model and a judge, exit codes and messages."""

import json
import shutil
from pathlib import Path

import pytest

import flipsearch
from tests.integration.test_cli import one_line_error, run
from tests.models import PLAIN_TEMPLATE, tiny_qwen3


def test_a_sound_model_and_judge_pass_every_check_within_80_columns(tmp_path: Path) -> None:
    done = run("doctor", "--model", "pocket", "--judge", "refusal", cwd=tmp_path)
    assert max(map(len, done.stdout.splitlines())) <= 80
    for what in ("torch", "cores", "chat template", "vocabulary", "in batches", "a refusal is SAFE", "help is UNSAFE"):
        assert what in " ".join(done.stdout.split())
    assert "No check failed." in done.stdout


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("files", "no safetensors weights"),
        ("chat template", "leaves out"),
        ("loading", "have no place in a Qwen3ForCausalLM|are missing"),
    ],
)
def test_a_failed_check_is_named_and_the_exit_code_is_1(stage: str, message: str, tmp_path: Path) -> None:
    template = PLAIN_TEMPLATE.replace("message.content", "''") if stage == "chat template" else PLAIN_TEMPLATE
    folder = tiny_qwen3(tmp_path / "model", chat_template=template)
    if stage == "files":
        (folder / "model.safetensors").unlink()
    if stage == "loading":  # the weights of a smaller one
        tiny_qwen3(tmp_path / "other", num_layers=1)
        shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    done = run("doctor", "--model", str(folder), "--json", cwd=tmp_path, code=1)
    printed = json.loads(done.stdout)
    (failed,) = [check for check in printed["checks"] if check["state"] == "failed"]
    assert not printed["is_healthy"]
    assert failed["name"] == stage
    assert any(part in failed["text"] for part in message.split("|"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "poket"], "unknown model 'poket'. Did you mean pocket?"),
        (["--backend", "vlm"], "--backend vlm: unknown backend"),
        (["--judge", "refsal"], "refsal"),
        (["--model", "none.gguf"], "there is no file 'none.gguf'"),
        (["--dtype", "float8"], "float8"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in one_line_error("doctor", *arguments, cwd=tmp_path)


def test_settings_may_come_from_a_file_that_typed_ones_win_over(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('model = "poket"\nnum_contexts = 3\n')
    assert "unknown model 'poket'" in one_line_error("doctor", "--config", "study.toml", cwd=tmp_path)
    error = one_line_error("doctor", "--config", "study.toml", "--model", "pokt", cwd=tmp_path)
    assert "unknown model 'pokt'" in error
    listed = [
        [row["name"] for row in json.loads(run("list", "contexts", *more, "--json", cwd=tmp_path).stdout)["rows"]]
        for more in (("--model", "smollm2"), ("--config", "study.toml", "--model", "pocket"), ("--model", "pocket"))
    ]
    assert listed[0] != listed[1] == listed[2]
    assert "--config goes with `list contexts`" in one_line_error(
        "list", "judges", "--config", "study.toml", cwd=tmp_path
    )
    (tmp_path / "study.toml").write_text('modle = "pocket"\n')
    assert "Did you mean model?" in one_line_error("doctor", "--config", "study.toml", cwd=tmp_path)


def test_a_model_of_another_backend_is_called_and_its_failure_is_seen(tmp_path: Path) -> None:
    replies = tmp_path / "replies.json"
    for entry, state in (({"completion": "Red."}, "ok"), ({"error": "HTTP 500"}, "failed")):
        replies.write_text(json.dumps([{"prompt": "Name three colours.", **entry}]), encoding="utf-8")
        diagnosis = flipsearch.doctor(model=str(replies), backend="scripted")
        (answer,) = [check for check in diagnosis.checks if check.name == "answer"]
        assert (answer.state, diagnosis.is_healthy) == (state, state == "ok")
