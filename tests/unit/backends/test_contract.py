"""The built-in backends keep the contract of flipsearch.testing that authors of others subclass."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flipsearch.backends.http import HttpBackend
from flipsearch.backends.scripted import ScriptedBackend
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.core.protocols import Backend
from flipsearch.testing import BackendContract
from tests.endpoint import last_message, says, serving
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


class TestScriptedBackend(BackendContract):
    def make_backend(self) -> Backend:
        return ScriptedBackend(lambda prompt, context: f"{context} {prompt}")


class TestTransformersBackend(BackendContract):
    @pytest.fixture(autouse=True)
    def _saved(self, saved: Path) -> None:
        self.folder = saved

    def make_backend(self) -> Backend:
        return TransformersBackend(str(self.folder))


class TestHttpBackend(BackendContract):
    @pytest.fixture(autouse=True)
    def _served(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        with serving(lambda body: says(f"re: {last_message(body)}")) as served:
            self.address = f"{served.url}#tiny"
            yield

    def make_backend(self) -> Backend:
        return HttpBackend(self.address)
