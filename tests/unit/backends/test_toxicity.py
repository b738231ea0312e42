"""A Detoxify checkpoint is loaded completely or not at all, and a text's scores do not depend on other texts."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from flipsearch.backends.toxicity import ToxicityModel
from flipsearch.core.errors import BackendError
from tests.toxicity import architecture, checkpoint

CPU = torch.device("cpu")
TEXTS = ["you are kind", "no", "what a day! it is fine, is it not?", "zzz " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architecture(tmp_path_factory.mktemp("architecture"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ToxicityModel:
    return ToxicityModel(checkpoint(folder / "tiny.ckpt", folder), folder, CPU)


def by_transformers(path: Path, folder: Path, text: str) -> torch.Tensor:
    """The sigmoids of one text by transformers' own model, filled by hand."""
    reference = BertForSequenceClassification.from_pretrained(
        None, config=BertForSequenceClassification.config_class.from_pretrained(folder, num_labels=6),
        state_dict=torch.load(path, weights_only=True)["state_dict"],
    ).eval()  # fmt: skip
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return torch.sigmoid(reference(**inputs).logits[0])


def test_the_classes_have_the_names_of_the_later_checkpoints(model: ToxicityModel) -> None:
    assert model.classes == ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack")


def test_scores_are_the_sigmoids_of_the_filled_model(model: ToxicityModel, folder: Path) -> None:
    expected = torch.stack([by_transformers(folder / "tiny.ckpt", folder, text) for text in TEXTS])
    torch.testing.assert_close(model.scores(TEXTS), expected, atol=1e-6, rtol=0)
    assert expected.std(0).min() > 1e-3  # the texts differ, so that a mix-up would show


def test_a_text_alone_scores_what_it_scores_among_others(model: ToxicityModel) -> None:
    together = model.scores([*TEXTS, "a b c " * 100])
    alone = torch.cat([model.scores([text]) for text in [*TEXTS, "a b c " * 100]])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_no_texts_have_no_scores(model: ToxicityModel) -> None:
    assert model.scores([]).shape == (0, 6)


def test_a_long_text_scores_the_highest_of_its_windows(model: ToxicityModel) -> None:
    letters = [chr(ord("a") + (7 * place) % 26) for place in range(150)]
    window, step = 62, 46  # tokens besides the two special ones, and what of them is new
    parts = [letters[start : start + window] for start in range(0, 150 - window + step, step)]
    parts = [part for number, part in enumerate(parts) if number == 0 or step * (number - 1) + window < 150]
    highest = torch.stack([model.scores([" ".join(part)])[0] for part in parts]).amax(0)
    torch.testing.assert_close(model.scores([" ".join(letters)])[0], highest, atol=1e-6, rtol=0)
    assert len(parts) == 3


def test_the_end_of_a_long_text_counts(model: ToxicityModel) -> None:
    front = "a " * 300
    assert not torch.allclose(model.scores([front]), model.scores([front + "zz! zz! zz!"]), atol=1e-3)


def test_the_positions_of_roberta_begin_after_its_padding(tmp_path: Path) -> None:
    folder = architecture(tmp_path / "architecture", "roberta", max_positions=40)
    model = ToxicityModel(checkpoint(tmp_path / "tiny.ckpt", folder, "roberta", num_outputs=16), folder, CPU)
    scores = model.scores(["a " * 500, "b"])
    assert scores.shape == (2, 6)  # outputs beyond the named classes are ignored
    assert scores.isfinite().all()


def test_extra_weights_of_the_transformers_of_2020_are_ignored(tmp_path: Path, folder: Path) -> None:
    old: dict[str, Any] = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    ToxicityModel(checkpoint(tmp_path / "bert.ckpt", folder, **old), folder, CPU)
    roberta = architecture(tmp_path / "architecture", "roberta")
    sizes = {"weight": (16, 16), "bias": (16,)}
    pooler: dict[str, Any] = {f"roberta.pooler.dense.{name}": torch.zeros(size) for name, size in sizes.items()}
    ToxicityModel(checkpoint(tmp_path / "roberta.ckpt", roberta, "roberta", **pooler), roberta, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.weight": None}, r"1 weights are missing \(classifier.weight\), 0 are unknown \(none\)"),
        ({"classifier.wait": torch.zeros(1)}, r"0 weights are missing \(none\), 1 are unknown \(classifier.wait\)"),
        ({"bert.pooler.dense.bias": None}, "missing"),
        ({"classifier.bias": torch.zeros(7)}, "does not fit its model: .*size mismatch"),
    ],
)
def test_a_checkpoint_that_does_not_fill_the_model_is_refused(
    tmp_path: Path, folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        ToxicityModel(checkpoint(tmp_path / "bad.ckpt", folder, **changes), folder, CPU)
    assert "\n" not in str(caught.value)


def test_names_with_the_prefix_of_a_training_are_refused(tmp_path: Path, folder: Path) -> None:
    content = torch.load(checkpoint(tmp_path / "bad.ckpt", folder), weights_only=True)
    content["state_dict"] = {f"model.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(BackendError, match=r"unknown \(model\.bert"):
        ToxicityModel(tmp_path / "bad.ckpt", folder, CPU)


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, folder: Path) -> None:
    torch.save({"config": Trap(tmp_path / "sprung"), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(BackendError, match="cannot be read as tensors and plain values"):
        ToxicityModel(tmp_path / "bad.ckpt", folder, CPU)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a whole file", b"version https://git-lfs", b"\x80\x02."])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, folder: Path, content: bytes) -> None:
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(BackendError, match=r"bad.ckpt' cannot be read") as caught:
        ToxicityModel(tmp_path / "bad.ckpt", folder, CPU)
    assert "\n" not in str(caught.value)


def changed(path: Path, part: str, name: str, value: Any) -> Path:
    content = torch.load(path, weights_only=True)
    content["config"][part]["args"][name] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("arch", "model_name", "BertModel", "is a BertModel, expected one of BertForSequenceClassification"),
        ("arch", "model_name", "RobertaForSequenceClassification", "holds the config of a bert; give the variant"),
        ("arch", "num_classes", "many", "is no Detoxify checkpoint"),
        ("arch", "num_classes", 5, "none is toxicity, or too many"),
        ("dataset", "classes", ["obscene"], "none is toxicity"),
        ("dataset", "classes", [], "is no Detoxify checkpoint"),
    ],
)
def test_an_impossible_config_is_refused(
    tmp_path: Path, folder: Path, part: str, name: str, value: Any, message: str
) -> None:
    path = changed(checkpoint(tmp_path / "bad.ckpt", folder), part, name, value)
    with pytest.raises(BackendError, match=message):
        ToxicityModel(path, folder, CPU)


@pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {"config": 3, "state_dict": {}}, torch.zeros(2)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, folder: Path, content: Any) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(BackendError, match="is no Detoxify checkpoint"):
        ToxicityModel(tmp_path / "bad.pt", folder, CPU)


@pytest.mark.skipif(importlib.util.find_spec("detoxify") is None, reason="needs the package detoxify")
def test_scores_are_those_of_the_package(model: ToxicityModel, folder: Path) -> None:
    package: Any = importlib.import_module("detoxify")
    theirs = package.Detoxify(checkpoint=str(folder / "tiny.ckpt"), huggingface_config_path=None)
    predicted = theirs.predict(TEXTS)
    expected = torch.tensor([[predicted[name][row] for name in model.classes] for row in range(len(TEXTS))])
    torch.testing.assert_close(model.scores(TEXTS), expected, atol=1e-6, rtol=0)
