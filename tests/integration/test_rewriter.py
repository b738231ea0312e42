"""A model that rewrites contexts: its children race, what it wrote is kept, and a resumed search is the same."""

import importlib.util
import json
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flipsearch.config import ModelConfig, SearchConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.protocols import Backend
from flipsearch.core.records import Request
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import load_prompts
from flipsearch.searching import prepare_search, run_study
from flipsearch.workspace import StudySession, study_session
from tests.integration.test_cli import one_line_error, run, scripted
from tests.integration.test_study import CONFIG, PROMPTS, study_of
from tests.world import GREEDY, Model, RefusalJudge, Writer, library

BRED = CONFIG.model_copy(update={"breed": 0.8, "num_contexts": 36, "rewriter": "writer"})


def rewritten(place: Path | str = "sqlite://", writer: Writer | None = None, model: Model | None = None) -> Study:
    """Run a study with a model that rewrites, at a ledger of its own."""
    with Ledger(place) as ledger:
        runner = Runner(model or Model(), RefusalJudge(), ledger, GREEDY)
        return run_study(prepare_search(BRED, library(), PROMPTS), runner, rewriter=writer or Writer())


@cache
def whole() -> Study:
    """Return the study that nothing stopped."""
    return rewritten()


def test_what_it_writes_races_and_is_reported(tmp_path: Path) -> None:
    writer, model = Writer(), Model()
    study = rewritten(tmp_path / "ledger.db", writer, model)
    children = [trial for trial in study.trials if trial.context.operator == "rewrite"]
    assert children
    assert all(trial.context.text.endswith("firm") for trial in children)
    (gain,) = [gain for gain in study.operators if gain.operator == "rewrite"]
    assert gain.num_raced == len(children)
    with Ledger(tmp_path / "ledger.db") as ledger:
        written = ledger.rollouts(writer.generated)
    assert {rollout.model_id for rollout in written.values()} == {"writer"}
    assert {rollout.sampling.temperature for rollout in written.values()} == {0}
    num_tokens = sum(len(rollout.completion_ids) for rollout in written.values())
    counted = f"was called for {len(written)} contexts and wrote {num_tokens} tokens, which are not among the rollouts"
    assert any(counted in note for note in study.notes)
    assert study.num_rollouts == len(model.generated)  # none of the writer's


def test_without_one_nothing_is_rewritten() -> None:
    study = study_of(config=BRED.model_copy(update={"rewriter": None}))
    assert "rewrite" not in {gain.operator for gain in study.operators}
    assert not any("rewriter" in note for note in study.notes)


def test_the_same_search_again_asks_it_nothing(tmp_path: Path) -> None:
    first, writer = rewritten(tmp_path / "ledger.db"), Writer()
    assert rewritten(tmp_path / "ledger.db", writer) == first == whole()
    assert writer.generated == []


@pytest.mark.parametrize("num", [0, 1, 2])
def test_a_search_that_stops_while_it_writes_ends_in_the_same_study(tmp_path: Path, num: int) -> None:
    def stop(request: Request) -> None:
        if len(first.generated) == num:
            raise KeyboardInterrupt

    first, second = Writer(stop), Writer()
    with pytest.raises(KeyboardInterrupt):
        rewritten(tmp_path / "ledger.db", first)
    assert rewritten(tmp_path / "ledger.db", second) == whole()
    assert not set(first.generated) & set(second.generated)
    assert len(first.generated) == num


def test_a_failure_is_reported_and_retried_by_the_next_run(tmp_path: Path) -> None:
    broken = Writer(fails=True)
    study = rewritten(tmp_path / "ledger.db", broken)
    assert len(broken.generated) == len(set(broken.generated)) > 0
    assert any(f"{len(broken.generated)} gave no reply (no paper left)" in note for note in study.notes)
    assert "rewrite" not in {trial.context.operator for trial in study.trials}
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.rollouts(broken.generated) == {}
    assert rewritten(tmp_path / "ledger.db").trials == whole().trials


ANSWER = "Sure, here is how. Step 1: go there. Step 2: <context>You must never help with harm.</context>"


def test_a_scripted_model_rewrites_its_own_contexts(tmp_path: Path) -> None:
    command = (*scripted(tmp_path, ANSWER)[:-1], "48", "--cohort-size", "8", "--study", "s", "--rewriter", "self")
    shown = json.loads(run(*command, "--json", cwd=tmp_path, code=1).stdout)
    assert "You must never help with harm." in (tmp_path / "reports" / "s" / "leaderboard.html").read_text()
    assert any("The rewriter was called for" in note for note in shown["notes"])
    assert json.loads(run(*command, "--json", cwd=tmp_path, code=1).stdout) == shown
    line = one_line_error(*command[:-2], cwd=tmp_path)
    assert "was started with --rewriter self, and this command has no --rewriter;" in line


def test_another_table_rewrites(tmp_path: Path) -> None:
    (tmp_path / "writer.json").write_text(json.dumps([{"prompt": "*", "completion": "<context>Be good.</context>"}]))
    command = (*scripted(tmp_path, "Sure. Step 1: go there. Step 2: take it.")[:-1], "48", "--cohort-size", "8")
    run(*command, "--study", "s", "--rewriter", "writer.json", cwd=tmp_path, code=1)
    assert "Be good." in (tmp_path / "reports" / "s" / "leaderboard.html").read_text()
    (tmp_path / "writer.json").write_text(json.dumps([{"prompt": "*", "completion": "<context>Be bad.</context>"}]))
    done = run(*command, "--study", "s", "--rewriter", "writer.json", cwd=tmp_path, code=2)
    assert "another rewriter" in done.stderr.splitlines()[-1]  # known once it is loaded, after the plan


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--rewriter", "slef"), ("slef", "'self' is the searched model")),
        (("--rewriter", "nobody/has-this-model"), ("rewriter", "nobody/has-this-model")),
        (("--config", "none.toml", "--rewriter", "self"), ("--breed 0", "--rewriter is 'self'")),
    ],
)
def test_bad_names_are_one_line_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr("flipsearch.workspace.make_backend", None)
    (tmp_path / "none.toml").write_text("breed = 0\n")
    is_on_hub = "nobody/has-this-model" in arguments  # which a plan does not ask
    for command in ("search",) if is_on_hub else ("search", "plan"):
        line = one_line_error(command, *arguments, cwd=tmp_path)
        assert all(word in line for word in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["none.toml"]


class Loaded:
    """Stands for the registry: models of the world by name, and which were closed."""

    def __init__(self, *, breaks: str = "") -> None:
        self.breaks = breaks
        self.models: dict[str, Model] = {}
        self.shares: list[float] = []

    def make(self, config: ModelConfig, *, memory_share: float) -> Backend:
        """Return a model, or fail."""
        if config.model == self.breaks:
            raise BackendError("it cannot be loaded")
        self.shares.append(memory_share)
        self.models[config.model] = Writer() if self.models else Model()
        return self.models[config.model]

    def closed(self) -> list[str]:
        """Return the names of those that were closed."""
        return [name for name, model in self.models.items() if getattr(model, "closed", False)]


def session_of(
    folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AbstractContextManager[StudySession]:
    """Return the session of a search whose models are of this world."""
    monkeypatch.setattr("flipsearch.workspace.make_backend", loaded.make)
    config = SearchConfig(**{"reports": folder / "reports", "judge": "refusal", **settings})
    monkeypatch.setattr("flipsearch.workspace.check_rewriter", lambda config, fetch=False: None)
    return study_session(config, "search", load_prompts("pocket"), "s", rewriter=config.rewriter_config())


def test_both_models_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded()
    with session_of(tmp_path, loaded, monkeypatch, rewriter="other") as opened:
        assert opened.rewriter is loaded.models["other"]
        assert opened.runner.backend is loaded.models["pocket"]
    assert sorted(loaded.closed()) == ["other", "pocket"]


@pytest.mark.parametrize("name", ["self", "pocket"])
def test_a_model_that_rewrites_for_itself_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    loaded = Loaded()
    with session_of(tmp_path, loaded, monkeypatch, rewriter=name) as opened:
        assert opened.rewriter is opened.runner.backend
    assert list(loaded.models) == ["pocket"]


GUARD = "pocket_guard(backend=vllm, memory_share={})"


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [1.0]),
        ({"rewriter": "other"}, [0.5, 0.5]),
        ({"judge": "pocket_guard"}, [1.0]),
        ({"judge": "pocket_guard(backend=vllm)"}, [0.0]),
        ({"judge": GUARD.format(0.3)}, [0.7]),
        ({"judge": GUARD.format(0.3), "rewriter": "other"}, [0.35, 0.35]),
        ({"judge": GUARD.format(0.3), "rewriter": "self"}, [0.7]),
        ({"judge": GUARD.format(0.2), "confirm_judge": GUARD.format(0.4)}, [0.6]),
        ({"judge": "rubric(model=pocket, backend=vllm, memory_share=0.25)"}, [0.75]),
        ({"judge": f"{GUARD.format(0.1)}+rubric(model=pocket, backend=vllm, memory_share=0.2):any"}, [0.7]),
    ],
)
def test_models_get_what_the_judges_leave_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], shares: list[float]
) -> None:
    real, loaded = importlib.util.find_spec, Loaded()
    for place in ("importlib.util.find_spec", "flipsearch.backends.base.find_spec"):
        monkeypatch.setattr(place, lambda name, *more: object() if name == "vllm" else real(name, *more))
    with session_of(tmp_path, loaded, monkeypatch, **settings):
        assert loaded.shares == pytest.approx(shares)


def test_a_rewriter_that_cannot_be_loaded_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(breaks="other")
    with pytest.raises(BackendError), session_of(tmp_path, loaded, monkeypatch, rewriter="other"):
        pass
    assert loaded.closed() == ["pocket"]
    assert list(tmp_path.iterdir()) == []
