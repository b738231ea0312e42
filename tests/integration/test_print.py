"""The report pages on paper: nothing is cut off, and nothing stays folded that a reader of paper would miss."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flipsearch.reporting.pages import leaderboard_page, training_page
from tests.finished_training import CONTEXT, RUN, a_log
from tests.integration.test_study import study_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-pdf-header-footer"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not shutil.which("pdftotext"), reason="needs Chromium and pdftotext"),
]


def on_paper(page: str, folder: Path) -> str:
    """Return the words of a page as it is printed, in the layout of the paper."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    pdf = folder / "page.pdf"
    places = (f"--user-data-dir={folder / 'browser'}", f"--print-to-pdf={pdf}", (folder / "page.html").as_uri())
    subprocess.run([str(CHROMIUM), *FLAGS.split(), *places], check=True, capture_output=True, timeout=120)
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], check=True, capture_output=True, text=True)
    return done.stdout


def test_the_leaderboard_has_all_its_columns(tmp_path: Path) -> None:
    study = study_of()
    text = on_paper(leaderboard_page(study), tmp_path)
    heads = next(line for line in text.splitlines() if "context" in line and "state" in line)
    assert "tokens" in heads
    assert sum(line.split()[-1:] == ["placebo"] for line in text.splitlines()) == 3
    assert "num_finalists" in text


def test_the_training_page_shows_contexts_and_settings(tmp_path: Path) -> None:
    text = on_paper(training_page(RUN, a_log(100)), tmp_path)
    assert all(line in text for line in CONTEXT.text.splitlines())
    assert "forward_weight" in text
