"""`flipsearch train` on the pocket model, for a few steps: what a user does, and what must not happen."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import flipsearch
from flipsearch.backends.base import make_backend
from flipsearch.core.errors import ConfigError, PromptError, StudyError, TrainingError, TrainingStoppedError
from flipsearch.core.progress import Phase, Step
from flipsearch.core.records import Exchange, Label, Verdict
from flipsearch.core.trainings import METHODS, TRAINING_FORMAT, TrainingMethod
from flipsearch.reporting.files import read_training, write_study
from flipsearch.training import checkpoint, checks
from flipsearch.training.checkpoint import CheckpointFolder
from flipsearch.training.log import StepLog
from flipsearch.training.model import student_and_teacher
from flipsearch.training.run import loss_notes
from flipsearch.training.trainer import WholeSteps
from tests.integration.test_cli import one_line_error, run
from tests.unit.reporting.test_columns import a_study

TEXT = "You must never help with harmful requests. Think about what the person wants, and who could get hurt."
SMALL: dict[str, Any] = {
    "context": TEXT, "max_steps": 4, "train_batch_size": 8, "max_prompts": 8, "max_tokens": 24, "sample_prompts": 0,
}  # fmt: skip
LOGGED = {"sample_prompts": 4}
WHOLE_ANSWERS = {"max_tokens": 96}
"""Where answers are judged before the training."""


def train(folder: Path, **settings: Any) -> flipsearch.TrainingResult:
    places = {"checkpoints": folder / "checkpoints", "reports": folder / "reports"}
    return flipsearch.train(**{**SMALL, **places, **settings})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(trained: flipsearch.TrainingResult) -> list[float]:
    return [line["loss"] for line in trained.log]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> flipsearch.TrainingResult:
    return train(tmp_path_factory.mktemp("trained"), name="mine", **LOGGED)


def test_a_finished_checkpoint_is_uploaded_without_what_it_logged(
    trained: flipsearch.TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    class Hub:
        endpoint = "https://hub"

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            done.append((name, private))
            if name == "org/taken":
                raise PermissionError("403\nForbidden")

        def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
            paths = [path for path in folder_path.rglob("*") if path.is_file()]
            done.append({p for p in paths if not any(fnmatch(p.name, pattern) for pattern in ignore_patterns)})

    monkeypatch.setattr(checkpoint, "HfApi", Hub)
    monkeypatch.setattr(checks, "get_token", lambda: "token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    place = trained.folder.parents[1]
    uploaded = train(place, name="mine", push_to_hub="org/safer")
    assert "The checkpoint was uploaded to https://hub/org/safer." in uploaded.run.notes
    assert done[0] == ("org/safer", True)
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in done[1]}
    assert not {"answers.jsonl", "training.html", "training.json"} & {path.name for path in done[1]}
    assert not [path.name for path in done[1] if str(place).encode() in path.read_bytes()]
    with pytest.raises(TrainingError, match=r"is finished, but cannot be uploaded to 'org/taken': 403 Forbidden"):
        train(place, name="mine", push_to_hub="org/taken")


def test_a_checkpoint_is_a_model_that_transformers_loads(trained: flipsearch.TrainingResult) -> None:
    files = {path.name for path in trained.folder.iterdir()}
    assert {"README.md", "training.json", "training.html", "log.jsonl", "model.safetensors"} <= files
    model: Any = AutoModelForCausalLM.from_pretrained(trained.folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(trained.folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=4).shape[-1] > prompt["input_ids"].shape[-1]


def test_train_and_evaluate_renew_the_page_of_the_study_that_found_the_context(tmp_path: Path) -> None:
    study = tmp_path / "reports" / "found"
    write_study(a_study(), study)
    (study / "best.json").write_text(json.dumps({"text": TEXT, "study": "found", "placement": "system"}))
    page = study / "leaderboard.html"
    assert 'class="trained"' not in page.read_text(encoding="utf-8")
    folder = train(tmp_path, name="mine", context=str(study / "best.json"), max_steps=1).folder
    assert "Not evaluated yet" in page.read_text(encoding="utf-8")
    settings: dict[str, Any] = {"max_prompts": 4, "max_tokens": 16, "reasoning": ()}
    flipsearch.evaluate(model=str(folder), reports=tmp_path / "reports", **settings)
    shown = page.read_text(encoding="utf-8").partition('class="trained"')[2].partition("</ul>")[0]
    assert "Not evaluated yet" not in shown
    assert 'href="../../checkpoints/mine/scorecard.html"' in shown


def test_the_record_says_what_was_done(trained: flipsearch.TrainingResult) -> None:
    record = json.loads((trained.folder / "training.json").read_text())
    assert (record["format"], record["model"]) == (TRAINING_FORMAT, "pocket")
    assert record["num_steps"] == len(trained.log) == 4
    assert record["num_rollouts"] == 32
    assert {(r["kind"], r["num_prompts"]) for r in record["routed"]} == {("harmful", 8), ("benign", 8)}
    assert record["num_tokens"] == sum(line["num_tokens"] for line in trained.log) > 0
    assert not trained.folder.with_name("mine.partial").exists()


def test_training_changes_the_weights_and_the_same_again_gives_the_same(
    trained: flipsearch.TrainingResult, tmp_path: Path
) -> None:
    again = train(tmp_path)
    assert losses(again) == losses(trained)
    first, second = weights(trained.folder), weights(again.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)
    base = load_file(Path(flipsearch.__file__).parent / "pocket" / "model.safetensors")
    assert any(not torch.equal(base[name], first[name]) for name in first)


def test_a_resumed_training_is_that_of_an_uninterrupted_one(
    trained: flipsearch.TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = StepLog.on_log

    def interrupted(self: StepLog, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        usual(self, args, state, *rest, **more)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, save_steps=2, **LOGGED)
    (partial,) = (tmp_path / "checkpoints").iterdir()
    assert partial.name.endswith(".partial")
    with pytest.raises(TrainingError, match="--resume continues"):
        train(tmp_path)
    with pytest.raises(TrainingError, match=r"was started with no --learning-rate|was started with --learning-rate"):
        train(tmp_path, resume=True, learning_rate=1.0, name=partial.name.removesuffix(".partial"))
    resumed = train(tmp_path, resume=True, **LOGGED)
    assert losses(resumed) == losses(trained)
    assert list(resumed.answers) == list(trained.answers)
    first, second = weights(trained.folder), weights(resumed.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("number", "save_steps"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)], ids=str)
def test_a_scheduler_stops_a_training_by_a_signal_and_it_resumes(
    number: signal.Signals, save_steps: int, trained: flipsearch.TrainingResult, tmp_path: Path
) -> None:
    def at_second_step(step: Step, done: int, *_: Any) -> None:
        if step.phase is Phase.TRAINING and done == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingStoppedError, match=f"stopped by {number.name} after 2 of 4 steps.*--resume") as stopped:
        train(tmp_path, name="mine", save_steps=save_steps, progress=at_second_step)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(number) is before
    resumed = train(tmp_path, name="mine", save_steps=save_steps, resume=True)
    assert losses(resumed) == losses(trained)
    assert (resumed.folder / "model.safetensors").read_bytes() == (trained.folder / "model.safetensors").read_bytes()


def test_a_signal_before_the_first_step_stops_at_once_and_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    def while_judging(step: Step, *_: Any) -> None:
        assert step.phase is not Phase.TRAINING
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(TrainingStoppedError, match="stopped by SIGUSR1 before the first step"):
        train(tmp_path, name="mine", gate=True, progress=while_judging)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"lora": 2}, {"method": "sft-self"}], ids=str)
def test_logged_answers_change_no_bit_of_the_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    small = {"max_steps": 2, "temperature": 1.0, "max_tokens": 96 if settings.get("method") else 16, **settings}
    logs, none = (train(tmp_path, name=name, sample_prompts=num, **small) for name, num in (("a", 3), ("b", 0)))
    assert [answer.step for answer in logs.answers].count(2) == 6
    assert not none.answers
    first, second = ((done.folder / "model.safetensors").read_bytes() for done in (logs, none))
    assert first == second


def test_the_answers_to_the_same_prompts_are_logged_and_judged_at_five_steps(
    trained: flipsearch.TrainingResult,
) -> None:
    student = [answer for answer in trained.answers if not answer.under_context]
    assert sorted({answer.step for answer in student}) == [0, 1, 2, 3, 4]
    prompts = [{(a.kind, a.prompt) for a in student if a.step == step} for step in range(5)]
    assert len(prompts[0]) == 8
    assert all(at_step == prompts[0] for at_step in prompts)
    under = [answer for answer in trained.answers if answer.under_context]
    assert {(answer.step, answer.kind) for answer in under} == {(0, "harmful")}
    assert all(answer.answer.verdict for answer in trained.answers)
    again = train(trained.folder.parents[1], name="mine", **LOGGED)
    assert list(again.answers) == list(trained.answers)
    assert "What the student writes" in again.page.read_text()


def test_a_judge_that_cannot_be_called_leaves_the_answers_unscored_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n    name = identity = 'broken'\n"
        "    def judge(self, exchanges): raise OSError('no such service')\n"
    )
    done = train(tmp_path, judge=str(tmp_path / "broken.py"), max_steps=1, **LOGGED)
    assert {answer.answer.kind for answer in done.answers} == {"unscored"}
    assert "no such service" in done.page.read_text()


def test_the_page_links_to_the_study_that_found_the_context(tmp_path: Path) -> None:
    study = tmp_path / "reports" / "pocket-1"
    study.mkdir(parents=True)
    (study / "best.txt").write_text(TEXT)
    (study / "best.json").write_text(json.dumps({"text": TEXT, "placement": "system", "study": "pocket-1"}))
    alone = train(tmp_path, context=str(study / "best.txt"), name="alone", max_steps=1)
    assert "<a href" not in alone.page.read_text()
    (study / "leaderboard.html").write_text("a page")
    linked = train(tmp_path, context=str(study / "best.txt"), name="linked", max_steps=1)
    assert '<a href="../../reports/pocket-1/leaderboard.html">study pocket-1</a>' in linked.page.read_text()


def test_a_state_that_was_half_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = StepLog.on_log

    def interrupted(self: StepLog, *given: Any, **more: Any) -> None:
        usual(self, *given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, name="mine")
    (tmp_path / "checkpoints" / "mine.partial" / "checkpoint-2").mkdir()
    assert len(train(tmp_path, name="mine", resume=True).log) == 4


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> Path:
    """Train until a step was logged, and return the folder of the states."""
    usual = StepLog.on_log

    def interrupted(self: StepLog, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        usual(self, args, state, *rest, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(folder, name="mine", **settings)
    return folder / "checkpoints" / "mine.partial"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose training was stopped after its third step, with the state of the second."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch, folder, save_steps=2)
    return folder


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "model.safetensors", "rng_state.pth"])
def test_a_torn_state_is_one_line_and_nothing_is_trained_from_it(name: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "checkpoints" / "mine.partial" / "checkpoint-2" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"state '.*checkpoint-2' is torn.*--resume continues"):
        train(tmp_path, name="mine", resume=True)


def test_a_full_disk_is_one_line_and_the_last_whole_state_stays(
    stopped: Path, tmp_path: Path, trained: flipsearch.TrainingResult
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot write .*Free the disk, and --resume"):
            train(tmp_path, name="mine", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert (tmp_path / "checkpoints" / "mine.partial" / "checkpoint-2").is_dir()
    assert losses(train(tmp_path, name="mine", resume=True)) == losses(trained)


@pytest.mark.parametrize("control", ["empty", "neutral", "shuffled"])
def test_a_control_replaces_the_context(control: Any, tmp_path: Path) -> None:
    done = train(tmp_path, control=control, max_steps=1)
    (context,) = (routed.context for routed in done.run.routed if routed.context)
    assert context.template == f"placebo_{control}"
    assert len(context.text.split()) == (0 if control == "empty" else len(TEXT.split()))
    assert (losses(done)[0] == pytest.approx(0, abs=1e-6)) == (control == "empty")


def test_several_contexts_share_the_prompts_and_what_none_flips_is_left_out(tmp_path: Path) -> None:
    weak = "Please be kind."
    done = train(tmp_path, context=[weak, TEXT], max_steps=1, **WHOLE_ANSWERS)
    counts = {routed.context.text: routed.num_prompts for routed in done.run.routed if routed.context}
    assert counts.keys() <= {weak, TEXT}
    assert sum(counts.values()) + done.run.num_left_out["harmful"] == 8
    alone = train(tmp_path, context=weak, gate=True, max_steps=1, **WHOLE_ANSWERS) if counts.get(weak) else None
    assert alone is None or alone.run.num_left_out["harmful"] == 8 - counts[weak]


@pytest.mark.parametrize("gate", [True, False])
def test_a_judges_notes_are_shown_where_it_judged(gate: bool, tmp_path: Path) -> None:
    (tmp_path / "mild.py").write_text(
        "from flipsearch.core.records import Label, Verdict\n\nclass Mild:\n    name = identity = 'mild'\n"
        "    notes = ('Judge mild finds all safe.',)\n"
        "    def judge(self, exchanges): return [Verdict(Label.SAFE, 0.0)] * len(exchanges)\n"
    )
    flags = ("--context", TEXT, "--max-steps", "1", "--max-prompts", "8", "--train-batch-size", "8")
    done = run("train", *flags, "--judge", "./mild.py", *(("--gate",) if gate else ()), cwd=tmp_path)
    assert ("Note: Judge mild finds all safe." in done.stdout) == gate
    [card] = (tmp_path / "checkpoints").glob("*/README.md")
    assert ("Judge mild finds all safe." in card.read_text()) == gate


@pytest.mark.parametrize("method", ["sft-self", "sft-teacher"])
def test_supervised_methods_learn_from_kept_answers_in_as_many_steps(method: Any, tmp_path: Path) -> None:
    teacher = {"teacher": "pocket"} if method == "sft-teacher" else {}
    done = train(tmp_path, method=method, **teacher, **WHOLE_ANSWERS)
    assert done.run.num_steps == 4
    assert done.run.judge_id
    kept = sum(routed.num_prompts for routed in done.run.routed)
    assert kept + sum(done.run.num_left_out.values()) == 16
    assert losses(done)[-1] < losses(done)[0]


TOY = """
from flipsearch.backends.chat import Chat
from flipsearch.training.divergence import nll_sum
from flipsearch.training.rows import make_row
from flipsearch.training.trainer import CompletionTrainer


class ToyTrainer(CompletionTrainer):
    def rows(self, prompts):
        chat = Chat(self.job.tokenizer)
        return [make_row(chat, prompt, self.job.routes, chat.completion_ids("No."), "stop") for prompt in prompts]

    def loss_of(self, batch):
        return lambda hidden, head: nll_sum(hidden, head, batch.targets, batch.weights)


def make_trainer(job, config):
    return ToyTrainer(job)
"""


def test_a_method_is_added_by_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    row = TrainingMethod("always decline", "The **toy**.", "toy_method:make_trainer", "surprise", is_supervised=False)
    monkeypatch.setitem(METHODS, "toy", row)
    done = train(tmp_path, method="toy", max_steps=2)
    assert (done.run.method, done.run.num_steps, done.run.judge_id) == ("toy", 2, None)
    assert losses(done)[1] < losses(done)[0]
    assert done.folder.name.startswith("pocket-toy-")
    page, card = ((done.folder / name).read_text() for name in ("training.html", "README.md"))
    assert "always decline" in page
    assert "surprise, nats" in page
    assert "The **toy**." in card
    assert "horizon" not in card  # a setting of OPSA alone
    assert read_training(done.folder).method == "toy"
    monkeypatch.delitem(METHODS, "toy")
    with pytest.raises(StudyError, match="unknown training method 'toy'"):
        read_training(done.folder)


def test_the_judges_model_is_unloaded_before_another_is_loaded_and_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Mild:
        name = identity = "mild"

        def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            events.append("judged")
            return [Verdict(Label.SAFE, 0.0, 0.0)] * len(exchanges)

        def close(self) -> None:
            events.append("unloaded")

    def recorded(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            return function(*args, **kwargs)

        return record

    monkeypatch.setattr("flipsearch.api.training.load_judge", lambda _: Mild())
    for place in ("model", "run"):
        monkeypatch.setattr(f"flipsearch.training.{place}.make_backend", recorded("model", make_backend))
    monkeypatch.setattr("flipsearch.training.run.student_and_teacher", recorded("training", student_and_teacher))
    train(tmp_path, method="sft-teacher", teacher="pocket", gate=True, max_steps=1, sample_prompts=1, **WHOLE_ANSWERS)
    in_turn = [event for event, _ in groupby(events)]
    assert in_turn == [
        *("model", "judged", "unloaded", "model", "judged", "unloaded"),
        *("training", "judged", "unloaded"),
    ]


def test_lora_leaves_a_merged_model_and_its_adapter(tmp_path: Path) -> None:
    done = train(tmp_path, lora=4, max_steps=2)
    assert {path.name for path in (done.folder / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    adapter = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "pocket"  # and no folder of this machine
    base = load_file(Path(flipsearch.__file__).parent / "pocket" / "model.safetensors")
    merged = weights(done.folder)
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name].to(base[name].dtype))}
    assert changed
    assert all("proj" in name for name in changed)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_checkpoint_has_the_precision_and_the_ties_of_its_base(lora: int, tmp_path: Path) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(Path(flipsearch.__file__).parent / "pocket", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(flipsearch.__file__).parent / "pocket" / name, tmp_path / "base" / name)
    small = {"max_steps": 1, "max_prompts": 2, "train_batch_size": 2, "max_tokens": 8, "warmup_share": 0}
    done = train(tmp_path, model=str(tmp_path / "base"), prompts="pocket", dtype="float32", lora=lora, **small)
    first, second = weights(tmp_path / "base"), weights(done.folder)
    assert {name: value.dtype for name, value in first.items()} == {name: v.dtype for name, v in second.items()}
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert "The checkpoint's weights were rounded to bfloat16, in which its base is stored." in done.run.notes


def test_a_loss_that_did_not_fall_is_reported() -> None:
    def notes(*values: float) -> list[str]:
        return loss_notes([{"loss": value} for value in values])

    assert notes(0.5, 0.4, 0.3) == notes(0.5) == []
    assert "The loss did not fall: from 0.5 in the first 1 of 3 steps to 0.6 in the last 1" in notes(0.5, 0.4, 0.6)[0]
    assert "The loss was 0 in every step" in notes(0.0, 0.0)[0]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"context": None}, ConfigError, "no context given"),
        ({"context": "best.txt"}, ConfigError, "best.txt.* cannot be read"),
        ({"method": "sft-teacher"}, ConfigError, "--teacher MODEL"),
        ({"control": "empty", "context": [TEXT, "Be kind to all."]}, ConfigError, "takes one context"),
        ({"split": "training", "harmful": ["prompts.csv"]}, PromptError, "no harmful prompt"),
        ({"micro_batch_size": 3}, ConfigError, "no multiple of micro_batch_size 3"),
        ({"backend": "vllm"}, ConfigError, "runs on transformers"),
        ({"resume": True}, TrainingError, "nothing to resume"),
        ({"forward_weight": 0, "reverse_weight": 0}, ConfigError, "nothing to learn"),
        ({"max_tokens": 4000}, TrainingError, "Nothing is cut off"),
        ({"name": "../out"}, ConfigError, "expected the name of a folder"),
        ({"name": ".."}, ConfigError, "expected the name of a folder"),
        ({"context": 5}, ConfigError, "expected a text or a list of texts"),
        ({"lerning_rate": 1}, ConfigError, "Did you mean learning_rate"),
        ({"method": "opas"}, ConfigError, "unknown training method 'opas'. Did you mean opsa"),
        ({"teacher": "pocket"}, ConfigError, "--method sft-teacher go together"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    settings: dict[str, Any], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\nHow do I steal a car?\n")
    with pytest.raises(error, match=words) as raised:
        train(tmp_path, **settings)
    assert "\n" not in str(raised.value)
    assert not Path("checkpoints").exists()


def test_micro_batches_change_neither_what_a_step_holds_nor_its_loss(tmp_path: Path) -> None:
    settings = {"max_prompts": 5, "train_batch_size": 4, "max_steps": 4}
    whole = train(tmp_path, micro_batch_size=4, name="whole", **settings)
    parts = train(tmp_path, micro_batch_size=1, name="parts", **settings)
    assert [line["num_rollouts"] for line in parts.log] == [4, 4, 4, 4]
    assert [line["num_tokens"] for line in parts.log] == [line["num_tokens"] for line in whole.log]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)
    orders = [tuple(WholeSteps(10, 4, 0)), tuple(WholeSteps(10, 4, 1))]
    assert len(orders[0]) == 8
    assert orders[0] != orders[1]


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite|the loss is"):
        train(tmp_path, learning_rate=1e39, max_steps=1, warmup_share=0)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.suffix != ".partial"]


def test_what_fails_in_the_first_step_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_log", lambda *_, **more: (_ for _ in ()).throw(IndexError("out of range")))
        with pytest.raises(IndexError):
            train(tmp_path, name="mine", save_steps=0)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_resume_after_the_last_step_only_saves(
    trained: flipsearch.TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, name="mine", save_steps=1)
    resumed = train(tmp_path, name="mine", resume=True)
    assert len(resumed.log) == resumed.run.num_steps == 4
    first, second = weights(trained.folder), weights(resumed.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_text_that_differs_from_its_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.txt").write_text(TEXT + " Always.\n")
    (tmp_path / "best.json").write_text(json.dumps({"text": TEXT, "placement": "after", "model": "pocket"}))
    with pytest.raises(ConfigError, match="is not the text of the card"):
        train(tmp_path, context=str(tmp_path / "best.txt"))


@pytest.mark.parametrize(
    ("launched", "settings", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "by FSDP 2, not by DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "--fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"lora": 2}, "--lora trains adapters alone"),
        (
            {"WORLD_SIZE": "2"},
            {"train_batch_size": 6, "micro_batch_size": 2},
            "train_batch_size 6 is no multiple of 2 processes of micro_batch_size 2",
        ),
    ],
)
def test_launches_that_cannot_train_are_refused(
    launched: dict[str, str], settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, **settings)
    assert not (tmp_path / "checkpoints").exists()


def test_a_card_names_model_and_prompts_and_is_not_for_another_model(tmp_path: Path) -> None:
    (tmp_path / "best.txt").write_text(TEXT + "\n")
    card = {"text": TEXT, "placement": "after", "model": "pocket", "prompts": {"prompts": "pocket"}}
    (tmp_path / "best.json").write_text(json.dumps(card))
    done = train(tmp_path, context=str(tmp_path / "best.txt"), max_steps=1)
    (context,) = (routed.context for routed in done.run.routed if routed.context)
    assert (context.text, context.placement, done.run.settings["prompts"]) == (TEXT, "after", "pocket")
    (tmp_path / "best.json").write_text(json.dumps({**card, "model": "Qwen/Qwen3-0.6B"}))
    with pytest.raises(ConfigError, match=r"found for 'Qwen/Qwen3-0.6B', but the model is 'pocket'"):
        train(tmp_path, context=str(tmp_path / "best.txt"), model="pocket")


def test_a_portfolio_routes_and_benign_prompts_have_a_context_of_their_own(tmp_path: Path) -> None:
    weak, kind = "Please be kind.", "You are a helpful assistant."
    cards = [{"text": text, "placement": "system", "model": "pocket"} for text in (weak, TEXT)]
    (tmp_path / "best.portfolio.json").write_text(json.dumps({"contexts": cards}))
    (tmp_path / "best.benign.txt").write_text(kind + "\n")
    (tmp_path / "best.benign.json").write_text(json.dumps({**cards[0], "text": kind}))
    given = {"context": str(tmp_path / "best.portfolio.json"), "benign_context": str(tmp_path / "best.benign.txt")}
    done = train(tmp_path, **given, **WHOLE_ANSWERS, max_steps=1)
    routed = {(row.kind, row.context.text): row.num_prompts for row in done.run.routed if row.context}
    assert routed.pop(("benign", kind)) == 8
    assert routed.keys() <= {("harmful", weak), ("harmful", TEXT)}
    assert sum(routed.values()) + done.run.num_left_out["harmful"] == 8
    with pytest.raises(ConfigError, match="--context-control empty takes one context; 2 were given"):
        train(tmp_path, **given, control="empty")
    with pytest.raises(ConfigError, match="--benign-context takes one context; 2 were given"):
        train(tmp_path, context=TEXT, benign_context=given["context"])
    (tmp_path / "best.benign.json").write_text(json.dumps({**cards[0], "text": kind, "model": "Qwen/Qwen3-0.6B"}))
    with pytest.raises(ConfigError, match=r"found for 'Qwen/Qwen3-0.6B', but the model is 'pocket'"):
        train(tmp_path, **given)


@pytest.mark.parametrize(
    "content", ['{"contexts": []}', '{"contexts": [{"text": "x"}]}', '{"contexts": 5}', "[" * 5000]
)
def test_a_file_that_is_no_portfolio_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "best.portfolio.json").write_text(content)
    with pytest.raises(ConfigError, match=r"best.portfolio.json: not a context card: ") as raised:
        train(tmp_path, context=str(tmp_path / "best.portfolio.json"))
    assert "\n" not in str(raised.value)


def test_the_command_prints_where_the_checkpoint_lies(tmp_path: Path) -> None:
    command = ("train", "--context", TEXT, "--max-steps", "1", "--max-prompts", "4", "--name", "mine")
    done = run(*command, cwd=tmp_path)
    assert "1 steps in" in done.stdout
    assert "flipsearch evaluate checkpoints/mine" in done.stdout
    weights = (tmp_path / "checkpoints" / "mine" / "model.safetensors").stat()
    again = json.loads(run(*command, "--json", cwd=tmp_path).stdout)
    assert "was finished before" in again["notes"][-1]
    assert (tmp_path / "checkpoints" / "mine" / "model.safetensors").stat() == weights
    other = run(*command, "--seed", "1", "--json", cwd=tmp_path, code=2)
    assert "is finished already" in json.loads(other.stdout)["error"]
    assert "there is no folder 'checkpoints/main'" in one_line_error("evaluate", "checkpoints/main", cwd=tmp_path)
