"""A few of the mangled files and options of tests/fuzzing.py: each ends in an exit code of the house and one line."""

import os
from pathlib import Path

import pytest

from tests.fuzzing import fault_of, make_material, run_case

NUM_CASES = 60


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study and the other files that commands read."""
    folder, before = tmp_path_factory.mktemp("material"), Path.cwd()
    os.chdir(folder)
    make_material(folder)
    os.chdir(before)
    return folder


def test_no_mangled_file_and_no_odd_option_is_an_unexpected_error(material: Path) -> None:
    cases = [run_case(seed, material) for seed in range(NUM_CASES)]
    faults = [f"{what} -> {fault}\n{err[-500:]}" for what, code, _, err in cases if (fault := fault_of(code, err))]
    assert not faults, "\n\n".join(faults)
