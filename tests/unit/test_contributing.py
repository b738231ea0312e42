"""CONTRIBUTING names files that are there, and no step of its walk through the code comes twice on the way down."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_files_of_the_walk_exist() -> None:
    walk = TEXT.split("## One prompt and one setting")[1].split("## ")[0]
    files = [
        name for line in walk.splitlines() if line.startswith("    ") for name in re.findall(r"[a-z_/]+\.py", line)
    ]
    assert len(files) > 15
    for name in files:
        assert list((ROOT / "flipsearch").rglob(name)), name


def test_every_room_has_its_layer_and_every_layer_its_rooms() -> None:
    table = TEXT.split("| layer | rooms |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`([a-z_]+)`", line)}
    there = {
        p.name.removesuffix(".py")
        for p in (ROOT / "flipsearch").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert there - {"__init__", "__main__"} <= named
