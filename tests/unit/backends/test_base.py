"""A backend is found by its name, from the table or from another package; what is wrong is one line before loading."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flipsearch
from flipsearch.api.lookup import list_available
from flipsearch.backends.base import BACKENDS, check_model, check_rewriter, list_backends, make_backend, model_identity
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError, PluginError
from tests.models import tiny_qwen3

TOY = '''
from flipsearch.backends.base import completed
from flipsearch.backends.chat import EncodedPrompt


class ToyBackend:
    """Refuses under a context."""

    model_id, notes, revision = "toy", ("This model is a toy.",), None
    system_notes = ("System texts are toys.",)

    @classmethod
    def from_config(cls, config, memory_share=1.0):
        return cls()

    def generate(self, requests, sampling):
        for request in requests:
            text = "I'm sorry, but I can't help with that." if request.context else "Sure, here is how. Step 1: go."
            prompt = EncodedPrompt((1, 2), opens_thinking=False)
            yield [completed(request, "toy", sampling, prompt, completion=text, completion_ids=(1,), stopped=True)]

    def count_tokens(self, text):
        return len(text.split())

    def close(self):
        pass


class NotABackend:
    pass
'''


@pytest.fixture
def toy_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose entry points are a backend and three that cannot be used."""
    (tmp_path / "toy_package.py").write_text(TOY, encoding="utf-8")
    info = tmp_path / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n", encoding="utf-8")
    entries = {
        "toy": "toy_package:ToyBackend",
        "no-module": "toy_packages:ToyBackend",
        "no-class": "toy_package:Missing",
        "no-backend": "toy_package:NotABackend",
        "http": "toy_package:ToyBackend",
    }
    lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[flipsearch.backends]\n{lines}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("toy_package")
def test_a_backend_of_another_package_is_listed_and_scores_a_context(tmp_path: Path) -> None:
    rows = {row["name"]: row["description"] for row in list_available("backends")}
    assert rows["toy"] == "ready: from toy_package:ToyBackend"
    assert "OpenAI" in rows["http"]  # a plug-in cannot replace a built-in backend
    settings: dict[str, Any] = {"model": "any name", "judge": "refusal", "prompts": "pocket", "max_prompts": 4}
    result = flipsearch.score("Be good.", backend="toy", reports=tmp_path / "reports", **settings)
    [trial] = [trial for trial in result.study.trials if trial.context.text == "Be good."]
    assert trial.search.flip_rate.value == 1.0
    assert "This model is a toy." in result.study.notes
    assert "System texts are toys." in result.study.notes
    beside = flipsearch.score("self_reminder_around", backend="toy", reports=tmp_path / "reports", **settings)
    assert "System texts are toys." not in beside.study.notes
    assert model_identity(ModelConfig(model="any name", backend="toy")) == "toy"


@pytest.mark.usefixtures("toy_package")
@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("no-module", r"'no-module' \(toy_packages:ToyBackend\) cannot be imported: ModuleNotFoundError"),
        ("no-class", r"'no-class' \(toy_package:Missing\) cannot be imported: AttributeError"),
        ("no-backend", r"'no-backend' \(toy_package:NotABackend\) has no classmethod from_config"),
    ],
)
def test_a_broken_entry_point_is_one_line(backend: str, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        check_model(ModelConfig(backend=backend))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vlm"}, r"--backend vlm: unknown backend\. Did you mean vllm\? Known: http, scripted"),
        ({"backend": "http", "model": "pocket"}, r"'pocket' is no address of a model; expected http"),
        ({"backend": "scripted", "model": "none.json"}, "reads its replies from a JSON file; 'none.json' is none"),
        ({"model": "poket"}, r"unknown model 'poket'\. Did you mean pocket\? Expected pocket, a local folder"),
    ],
)
def test_a_wrong_name_is_one_line_before_loading(settings: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        check_model(ModelConfig(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=rf"rewriter: .*{message}"):
        check_rewriter(ModelConfig(**settings))  # type: ignore[arg-type]


def test_vllm_takes_no_address_and_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not installed" in list_backends()["vllm"] or "ready" in list_backends()["vllm"]
    monkeypatch.setattr("flipsearch.backends.base.find_spec", lambda name: object())
    assert list_backends()["vllm"] == "ready: fast on GPUs"
    with pytest.raises(BackendError, match="--backend vllm loads a local or hub model"):
        check_model(ModelConfig(model="http://localhost/v1#tiny", backend="vllm"))
    with pytest.raises(BackendError, match="--device is not for vllm"):
        check_model(ModelConfig(backend="vllm", device="cpu"))


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.backends.base.find_spec", lambda name: None)
    assert list_backends()["vllm"].startswith("not installed (pip install 'flipsearch[vllm]'")
    with pytest.raises(BackendError, match=r"--backend vllm needs a package that is not installed: pip install"):
        check_model(ModelConfig(backend="vllm"))


def test_the_identity_needs_no_weights_and_follows_the_settings(tmp_path: Path) -> None:
    config = ModelConfig(model=str(tiny_qwen3(tmp_path)))
    changed = [config.model_copy(update=update) for update in ({"thinking": "off"}, {"dtype": "bfloat16"})]
    assert len({model_identity(each) for each in [config, *changed]}) == 3
    assert model_identity(config.model_copy(update={"batch_size": 3})) == model_identity(config)


def test_a_table_is_loaded_by_its_name(tmp_path: Path) -> None:
    table = tmp_path / "replies.json"
    table.write_text('[{"prompt": "*", "completion": "Hm."}]', encoding="utf-8")
    config = ModelConfig(model=str(table), backend="scripted")
    assert make_backend(config).model_id == model_identity(config)


def test_listing_and_checking_load_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from flipsearch.backends.base import *; from flipsearch.config import ModelConfig;"
        "list_backends(); check_model(ModelConfig()); check_model(ModelConfig(model='http://localhost/v1#tiny'));"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_every_row_of_the_table_names_a_class_that_loads_models(name: str) -> None:
    module, _, class_name = BACKENDS[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), class_name).from_config)
