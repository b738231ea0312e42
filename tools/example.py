"""Rebuilds reports/example and the picture in the README: the demo study, its files and a picture of the page's top.

    python tools/example.py

Takes some minutes on a CPU. The picture needs Chromium; without it the old one stays, and a line says so.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import flipsearch

EXAMPLE = Path(__file__).parents[1] / "reports" / "example"
FROM_STUDY = ("leaderboard.html", "leaderboard.csv", "study.toml")
FROM_SEARCH = ("best.txt", "best.json", "best.portfolio.json")
SIZE = "1280,1020"


def main() -> None:
    """Search, copy the files, and take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no path of this machine is in the settings of the example
        result = flipsearch.search()
        for path in [*(result.folder / name for name in FROM_STUDY), *map(Path, FROM_SEARCH)]:
            shutil.copy(path, EXAMPLE)
        take_picture(EXAMPLE / "leaderboard.html", EXAMPLE / "leaderboard.png")


def take_picture(page: Path, picture: Path) -> None:
    """Write a picture of the top of a page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        print(f"no Chromium: {picture} is as it was")
        return
    flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE}", "--virtual-time-budget=5000")
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *flags, f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
