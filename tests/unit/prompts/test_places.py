"""Prompts that a file names are taken where they are a set by name or a file here, and from nowhere else."""

from pathlib import Path

import pytest

from flipsearch.core.errors import PromptError
from flipsearch.prompts.files import require_local_prompts


@pytest.mark.parametrize("spec", ["hf://datasets/a/b.csv", "https://x.example/a.csv:goal", "org/set", "no/such.csv"])
def test_nothing_is_fetched_because_a_file_says_so(spec: str) -> None:
    with pytest.raises(PromptError, match=r"best.json names the prompts '.*', which are not on .*: give --prompts\."):
        require_local_prompts(["pocket", spec], "best.json", "give --prompts")


def test_what_lies_here_is_taken_and_what_has_gone_is_not(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("goal\nhow?\n")
    specs = ["starter", str(path), f"{path}:goal"]
    require_local_prompts(specs, "best.json", "give --prompts")
    path.unlink()
    for spec in specs[1:]:
        with pytest.raises(PromptError, match="not on this machine"):
            require_local_prompts([spec], "best.json", "give --prompts")
