"""The notebooks run from top to bottom on the pocket model."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["found"].best is not None
    assert names["scored"].leaderboard["confirm_flip_rate"].iloc[0] > 0
    assert all(cell.get("outputs", []) == [] for cell in cells), "notebooks are kept without outputs"


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
