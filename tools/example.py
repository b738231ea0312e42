"""Rebuilds reports/example and the picture in the README: the demo study, its files and a picture of the page's top.

    python tools/example.py

Takes some minutes on a CPU. The picture needs Chromium; without it the old one stays, and a line says so.
"""

import os
import shutil
import tempfile
from pathlib import Path

import flipsearch
from flipsearch.core.errors import ConfigError
from flipsearch.reporting.formats import take_picture

EXAMPLE = Path(__file__).parents[1] / "reports" / "example"
FROM_STUDY = ("leaderboard.html", "leaderboard.csv", "study.toml")
FROM_SEARCH = ("best.txt", "best.json", "best.portfolio.json")
HEIGHT = 1020
"""Pixels of the picture."""


def main() -> None:
    """Search, copy the files, and take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no path of this machine is in the settings of the example
        result = flipsearch.search()
        for path in [*(result.folder / name for name in FROM_STUDY), *map(Path, FROM_SEARCH)]:
            shutil.copy(path, EXAMPLE)
    try:
        take_picture((EXAMPLE / "leaderboard.html").read_text(encoding="utf-8"), HEIGHT, EXAMPLE / "leaderboard.png")
    except ConfigError as error:
        print(f"the picture is as it was: {error}")


if __name__ == "__main__":
    main()
