"""Prompts that a file names are taken where they are a set by name or a file here, and from nowhere else."""

from pathlib import Path

import pytest

from flipsearch.core.errors import PromptError
from flipsearch.prompts.places import require_local_prompts


@pytest.mark.parametrize("spec", ["hf://datasets/a/b.csv", "https://x.example/a.csv:goal", "org/set", "no/such.csv"])
def test_nothing_is_fetched_because_a_file_says_so(spec: str) -> None:
    with pytest.raises(PromptError, match=r"best.json names the prompts '.*', which are not on .*: give --prompts\."):
        require_local_prompts(["pocket", spec], "best.json", "give --prompts")


def test_sets_and_files_on_this_machine_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("goal\nhow?\n")
    require_local_prompts(["starter", str(path), f"{path}:goal"], "best.json", "give --prompts")
