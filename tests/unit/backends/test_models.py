"""What is wrong with a model's files is found before loading, and its fingerprint follows its content."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from flipsearch.backends import models
from flipsearch.backends.models import check_source, fingerprint, locate
from flipsearch.core.errors import BackendError
from tests.models import tiny_qwen3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_complete_folder_passes(folder: Path) -> None:
    check_source(str(folder))
    files = locate(str(folder))
    assert (files.folder, files.revision) == (folder, None)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "config.json is missing; it holds .*model.safetensors"),
        ("tokenizer.json", "no tokenizer in .*expected one of tokenizer.json"),
        ("model.safetensors", "no safetensors weights in .*it holds .*config.json"),
    ],
)
def test_a_missing_file_is_named_with_what_is_there(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(BackendError, match=message):
        check_source(str(folder))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackendError, match="Pickled weights are not loaded"):
        check_source(str(folder))


def test_an_adapter_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackendError, match="merge it first"):
        check_source(str(tmp_path))


def test_cut_weights_are_found_without_loading(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BackendError, match="not a complete safetensors file"):
        check_source(str(folder))


def test_a_git_lfs_pointer_is_found(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BackendError, match="not a complete safetensors file"):
        check_source(str(folder))


def test_a_missing_shard_is_found(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackendError, match=r"model-00002-of-00002.safetensors' is missing"):
        check_source(str(folder))


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(BackendError, match=r"unknown model 'qwen': .*org/name\[@revision\]"):
        check_source("qwen")


def test_a_file_is_not_a_model(folder: Path) -> None:
    with pytest.raises(BackendError, match="is a file; expected the model's folder"):
        check_source(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main", "a_b/c.d@refs/pr/1"])
def test_a_hub_id_passes_by_its_shape_without_network(name: str) -> None:
    check_source(name)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_the_fingerprint_follows_every_file_that_can_change_a_completion(folder: Path, file: str) -> None:
    before = fingerprint(folder)
    (folder / file).write_text((folder / file).read_text() + "\n")
    assert fingerprint(folder) != before


def test_the_fingerprint_follows_one_bit_of_the_weights_and_not_the_readme(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("about")
    assert fingerprint(folder) == before
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(folder) != before


def test_a_hub_model_is_identified_by_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(folder, tmp_path / "snapshots" / ("c" * 40)))
    options_seen: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        options_seen.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(models, "snapshot_download", download)
    files = locate("org/name@v1")
    assert (options_seen["name"], options_seen["revision"]) == ("org/name", "v1")
    assert (files.folder, files.revision) == (snapshot, "c" * 40)
    assert "c" * 40 in files.fingerprint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v1'"),
        ("RepositoryNotFoundError", "neither a folder here nor a public model"),
        ("LocalEntryNotFoundError", "hub cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    kind = getattr(huggingface_hub.errors, error)

    def download(*_: object, **__: object) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(models, "snapshot_download", download)
    with pytest.raises(BackendError, match=message):
        locate("org/name@v1")


def test_checking_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from flipsearch.backends.models import check_source; check_source(sys.argv[1]); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
DAMAGES = {
    "torn": b'{"a": [1,',
    "empty": b"",
    "a list": b"[1, 2]",
    "a page": b"<html>404</html>",
    "not text": b"\xff\xfe\x00\x80",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
    "endless": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*FILES, "model.safetensors.index.json"])
def test_every_damaged_file_is_named(file: str, damage: str, folder: Path) -> None:
    (folder / file).write_bytes(DAMAGES[damage])
    with pytest.raises(BackendError, match=rf"'\S*/{file}' (cannot be read|holds|is a Git)") as caught:
        check_source(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [*FILES, "chat_template.jinja", "model.safetensors.index.json"])
def test_a_folder_in_the_place_of_a_file_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink(missing_ok=True)
    (folder / file).mkdir()
    with pytest.raises(BackendError, match=rf"/{file}' cannot be read: Is a directory"):
        check_source(str(folder))


def test_a_name_beside_folders_that_are_here_is_no_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    place = folder.parent.name
    with pytest.raises(BackendError, match=rf"no folder '{place}/modl', .*Did you mean {place}/model"):
        check_source(f"{place}/modl")
    check_source(f"{place}/modl@main")
