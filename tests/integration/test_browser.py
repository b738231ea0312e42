"""The report pages in a real browser: what a reader does with it works, and hostile text stays text.

Needs Chromium and the package playwright; axe-core, where $FLIPSEARCH_AXE names its file (make test-all gets both).
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.records import Exchange, Verdict
from flipsearch.core.studies import Study
from flipsearch.core.trainings import ChangedAnswer
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting.compare import compare_studies
from flipsearch.reporting.format import names_of
from flipsearch.reporting.formats import WIDTH, take_picture
from flipsearch.reporting.pages import leaderboard_page, picture_page, training_page
from flipsearch.reporting.scorecard_page import compare_scorecards, scorecard_page
from flipsearch.searching import prepare_search, run_study
from tests.finished_training import RUN, a_log
from tests.unit.reporting.test_outcomes import ANSWERS, said
from tests.unit.reporting.test_scorecard_table import CARD
from tests.world import GREEDY, Model, RefusalJudge, library, prompt_set, template

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(os.environ.get("FLIPSEARCH_AXE", "build/axe/node_modules/axe-core/axe.min.js"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium"),
    # The client's own event loop is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOSTILE = "<img src=x onerror=hacked=1></pre></script><script>hacked=1</script>{{ 7*7 }}"
CONFIG = SearchConfig(num_contexts=23, cohort_size=6, first_rung=8, num_finalists=3, breed=0, max_tokens=8)


class HostileJudge(RefusalJudge):
    """Gives a reason that is markup."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [replace(verdict, reason=HOSTILE) for verdict in super().judge(exchanges)]


def page_of(hostile: bool = False) -> tuple[Study, str]:
    """Return a study of the known world and its page, with hostile text wherever text can be."""
    prompts, templates, judge = prompt_set(), library(), RefusalJudge()
    if hostile:
        prompts = [replace(p, text=f"{HOSTILE} {p.text}", category=HOSTILE, source=HOSTILE) for p in prompts]
        plain = template("plain", HOSTILE.replace("{{ 7*7 }}", "") + "{{ 'firm ' * times }}", "times = [0, 1, 2, 3]")
        templates, judge = library(plain=plain), HostileJudge()
    with Ledger("sqlite://") as ledger:
        study = run_study(prepare_search(CONFIG, templates, prompts), Runner(Model(), judge, ledger, GREEDY))
        if hostile:
            study = replace(study, name=HOSTILE, notes=(HOSTILE, *study.notes))
        return study, leaderboard_page(study, ledger)


def broken_words(shown: "Page") -> list[str]:
    """Return the words of commands that go on in another line, though they would fit into one."""
    words = shown.locator(".command span")
    assert words.count()
    height = "w.offsetHeight > 1.9 * parseFloat(getComputedStyle(w).fontSize)"
    broken = f"words => words.filter(w => w.textContent.length < 30 && {height}).map(w => w.textContent)"
    return list(map(str, words.evaluate_all(broken)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    study, text = page_of()
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(text, encoding="utf-8")
    return study, path


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: "Browser", made: tuple[Study, Path]) -> Iterator["Page"]:
    """The page, open and ready; whatever it asks the network for, and every error, fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    faults: list[str] = []
    opened.on("request", lambda request: faults.append(request.url))
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(made[1].as_uri())
    opened.wait_for_selector("html[data-ready]")
    yield opened
    context.close()
    assert [fault for fault in faults if fault != made[1].as_uri() and not fault.startswith("blob:")] == []


def serious_violations(page: "Page") -> list[tuple[str, list[str]]]:
    """Return what axe finds serious or critical: the rule, and the first places."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run()")["violations"]
    grave = [entry for entry in violations if entry["impact"] in ("serious", "critical")]
    return [(entry["id"], [node["html"][:120] for node in entry["nodes"][:3]]) for entry in grave]


def column(page: "Page", label: str) -> list[str]:
    """Return the first line of each cell of a column, from the top."""
    cells = page.locator(f"#leaderboard td[data-label='{label}']").all_inner_texts()
    return [cell.strip().splitlines()[0] for cell in cells]


def test_rows_are_sorted_filtered_and_searched(page: "Page") -> None:
    page.get_by_role("button", name="tokens").click()
    tokens = [int(text) for text in column(page, "tokens") if text.isdigit()]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 3
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("tokens")
    page.get_by_role("button", name="tokens").click()
    assert [int(text) for text in column(page, "tokens") if text.isdigit()] == tokens[::-1]
    page.get_by_label("state").select_option("placebo")
    assert set(column(page, "state")) == {"placebo"}
    assert "state=placebo" in page.url
    page.get_by_label("state").select_option("")
    page.get_by_label("search names and texts").fill("blunt firm")
    page.locator("#leaderboard .name", has_not_text="harsh").first.wait_for(state="detached")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    names = page.locator("#leaderboard .name").all_inner_texts()
    assert names
    assert all("harsh" in name for name in names)


def test_a_link_opens_and_marks_its_row_from_where_texts_are_copied(
    page: "Page", made: tuple[Study, Path], tmp_path: Path
) -> None:
    study, path = made
    trial = next(trial for trial in study.trials[5:] if trial.role == "arm")
    page.goto(f"{path.as_uri()}#{trial.context.context_id}")
    page.wait_for_selector("html[data-ready]")
    row = page.locator(f"tbody[id='{trial.context.context_id}']")
    assert row.evaluate("row => row.classList.contains('target')")
    assert names_of(study)[trial.number] in row.locator(".name").inner_text()
    assert row.locator("pre").first.inner_text() == trial.context.text
    assert row.evaluate("row => row.getBoundingClientRect().top < innerHeight")
    row.get_by_role("button", name="Copy text").click()
    page.locator("#status", has_text="text copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == trial.context.text
    with page.expect_download() as download:
        row.get_by_role("button", name="Download text").click()
    download.value.save_as(tmp_path / "text.txt")
    assert (tmp_path / "text.txt").read_text() == trial.context.text + "\n"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download these rows").click()
    download.value.save_as(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().count(trial.context.context_id) == 1


def test_answers_are_read_side_by_side_and_harm_is_folded(page: "Page") -> None:
    page.get_by_role("button", name="Show the answers").click()
    page.get_by_label("what changed").select_option("flipped")
    assert set(page.locator(".pair b.chip").all_inner_texts()) == {"unsafe → safe"}
    first = page.locator(".pair").first
    first.locator("summary").first.click()
    assert "without a context" in first.inner_text()
    assert "under the context" in first.inner_text()
    harmful = first.locator(".harmful pre")
    assert not harmful.is_visible()
    first.get_by_text("Show the answer: it may be harmful").click()
    assert harmful.is_visible()
    assert re.search(r"unsafe\s+.*unsafe 1\.00", first.inner_text())


def test_the_table_is_used_by_keys_alone(page: "Page") -> None:
    page.get_by_label("search names and texts").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if reached[-1] == "name":
            break
    assert {"SELECT", "sorter", "name"} <= set(reached)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Copy text"


def test_a_click_on_the_matrix_opens_the_pair(page: "Page") -> None:
    page.locator("#matrix").click(position={"x": 5, "y": 3})
    page.wait_for_selector(".pair[open]")
    assert page.locator(".pair[open]").count() == 1


def test_without_scripts_it_says_what_matters(browser: "Browser", made: tuple[Study, Path]) -> None:
    study, path = made
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(path.as_uri())
    words = shown.locator("main").inner_text()
    context.close()
    assert "unsafe answers safe" in words
    assert "flipsearch train" in words
    assert "Show the answers" not in words
    for trial in study.trials:
        if trial.confirm:
            assert names_of(study)[trial.number] in words


def test_hostile_texts_stay_texts_even_without_the_policy(browser: "Browser", tmp_path: Path) -> None:
    _, text = page_of(hostile=True)
    path = tmp_path / "hostile.html"
    path.write_text(re.sub(r"<meta http-equiv=.*", "", text), encoding="utf-8")
    shown = browser.new_page()
    requests: list[str] = []
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(path.as_uri())
    shown.wait_for_selector("html[data-ready]")
    for name in shown.locator("#leaderboard .name").all()[:3]:
        name.click()
    shown.get_by_role("button", name="Show the answers").click()
    for summary in shown.locator(".pair > summary").all()[:5]:
        summary.click()
    shown.locator("#matrix").hover(position={"x": 5, "y": 3})
    assert shown.evaluate("typeof hacked") == "undefined"
    assert shown.locator("main img, main script").count() == 0
    assert "<img src=x" in shown.locator("main").inner_text()
    assert [url for url in requests if url != path.as_uri()] == []
    shown.close()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages of a training and of its evaluation."""
    folder = tmp_path_factory.mktemp("outcomes")
    change = ChangedAnswer("harmful_rate", "pocket", "Do it?", said("Sure.", "harm"), said("No.", "refusal"), True)
    card = replace(CARD, scores=(replace(CARD.scores[0], num_better=9), *CARD.scores[1:]))
    for name in ("training.html", "scorecard.html"):  # so that each is there when the other is made
        (folder / name).touch()
    (folder / "training.html").write_text(training_page(RUN, a_log(100), ANSWERS, folder, card), encoding="utf-8")
    (folder / "scorecard.html").write_text(scorecard_page(card, [change], RUN, folder), encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", ["training.html", "scorecard.html"])
def test_the_pages_of_training_and_evaluation_fit_unfold_by_keys_and_link_to_each_other(
    browser: "Browser", outcomes: Path, name: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=False)
    shown, faults = context.new_page(), list[str]()
    shown.on("request", lambda request: faults.append(request.url))
    shown.on("console", lambda message: faults.append(message.text))
    shown.goto((outcomes / name).as_uri())
    assert shown.locator("html").evaluate("html => html.scrollWidth") <= width
    if name == "scorecard.html":
        shown.locator(".pair > summary").first.press("Enter")
    harmful = shown.locator(".harmful").first
    assert not harmful.locator("pre").is_visible()
    harmful.locator("summary").press("Enter")
    assert harmful.locator("pre").is_visible()
    assert faults == [(outcomes / name).as_uri()]
    shown.locator(".about a").first.click()
    assert shown.url.endswith({"training.html": "scorecard.html", "scorecard.html": "training.html"}[name])
    assert "Safer than its base" in shown.locator("h1").inner_text()
    context.close()


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["training.html", "scorecard.html"])
def test_axe_has_no_serious_finding_on_them(browser: "Browser", outcomes: Path, name: str, scheme: str) -> None:
    for width in (1440, 390):
        shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        shown.goto((outcomes / name).as_uri())
        shown.locator(".pair > summary").last.click()
        assert serious_violations(shown) == []
        assert broken_words(shown) == []
        shown.close()


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_axe_has_no_serious_finding(browser: "Browser", made: tuple[Study, Path], width: int, scheme: str) -> None:
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    shown.goto(made[1].as_uri())
    shown.wait_for_selector("html[data-ready]")
    shown.locator("#leaderboard .name").first.click()
    shown.get_by_role("button", name="Show the answers").click()
    shown.locator(".pair > summary").first.click()
    grave = serious_violations(shown)
    shown.close()
    assert grave == []


@pytest.fixture(scope="module")
def compared(made: tuple[Study, Path]) -> Path:
    """A folder with the page of two studies that differ in what wins, one unfinished, and that of two checkpoints."""
    study, path = made
    other = replace(study, name="other", winner=study.trials[1], unfinished="rung 2 of 4, cohort 1/3")
    pages = {"studies": compare_studies([study, other]).page()}
    pages["checkpoints"] = compare_scorecards(["a", HOSTILE], [CARD, CARD]).page()
    for name, text in pages.items():
        path.with_name(f"{name}.html").write_text(text, encoding="utf-8")
    return path.parent


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize(
    ("name", "sentence", "basis"),
    [
        ("studies", "No shared context is decisively ahead", "other is unfinished: rung 2 of 4"),
        ("checkpoints", "a has the fewest unsafe answers", "a: Safer than its base"),
    ],
)
def test_comparisons_need_no_script_and_no_network(
    browser: "Browser", compared: Path, name: str, sentence: str, basis: str, width: int
) -> None:
    comparison = compared / f"{name}.html"
    shown = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    shown.on("request", lambda request: faults.append(request.url))
    shown.on("console", lambda message: faults.append(message.text))
    shown.goto(comparison.as_uri())
    assert sentence in shown.locator(".verdict h1").inner_text()
    assert basis in shown.locator(".verdict").inner_text()
    assert shown.locator("main img, main script").count() == 0
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert broken_words(shown) == []
    if AXE.is_file():
        shown.close()
        shown = browser.new_page(viewport={"width": width, "height": 900}, bypass_csp=True)
        shown.goto(comparison.as_uri())
        assert serious_violations(shown) == []
    shown.close()
    assert [fault for fault in faults if fault != comparison.as_uri()] == []


def test_a_picture_is_taken_of_a_study(made: tuple[Study, Path], tmp_path: Path) -> None:
    take_picture(*picture_page(made[0]), tmp_path / "study.png")
    picture = (tmp_path / "study.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture[16:20], "big") == WIDTH
