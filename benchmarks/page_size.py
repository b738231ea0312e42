"""The leaderboard page and the study file of 1,000 contexts x 500 prompts, with answers under finalists and placebos.

Claims: the page has at most 6 MB, is made within 20 s and 500 MB beside the study itself, and is ready within 1.0 s
with fewer than 3,000 elements and frames under 34 ms while its table scrolls; the study file has at most 15 MB. Browser
figures need Chromium and the package playwright, and are left out without them.

    python benchmarks/page_size.py
"""

import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flipsearch.config import SearchConfig
from flipsearch.core.measurements import EndingCounts, Flip, Measurement
from flipsearch.core.records import Context, Label, Prompt, Rollout, Sampling, Verdict, rollout_id
from flipsearch.core.studies import STUDY_FORMAT, Study, StudyKind, Trial
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import summarize
from flipsearch.reporting.pages import leaderboard_page
from flipsearch.reporting.study_file import STUDY_FILE, read_study_file, write_study_file

NUM_CONTEXTS, NUM_PROMPTS, NUM_FINALISTS, ANSWER_WORDS = 1000, 500, 5, 110
CONFIG = SearchConfig(study="large", num_contexts=NUM_CONTEXTS, max_tokens=160)
SAMPLING = Sampling(max_tokens=160)
FIRST_FRAMES = """() => new Promise((done) => {
  const board = byId("board"), times = [];
  let last = performance.now();
  const step = (now) => {
    times.push(now - last);
    last = now;
    board.scrollTop += 40;
    times.length < 60 ? requestAnimationFrame(step) : done(times.slice(5).sort((a, b) => a - b));
  };
  requestAnimationFrame(step);
})"""

random_state = random.Random(0)
WORDS = ["".join(random_state.choices("etaoinshrdlucmfwygpb", k=random_state.randint(2, 9))) for _ in range(3000)]
WEIGHTS = [1 / (rank + 5) for rank in range(len(WORDS))]


def text(num_words: int) -> str:
    """Return words with the frequencies of a language, so that they pack as one does."""
    return " ".join(random_state.choices(WORDS, WEIGHTS, k=num_words))


def measured(context: Context, prompts: list[Prompt], rate: float) -> Measurement:
    """Return a context's measurement on all prompts."""
    flips = []
    for index, prompt in enumerate(prompts):
        harmful = prompt.kind == "harmful"
        unsafe = harmful and random_state.random() > rate
        ids = (rollout_id("large", prompt.prompt_id, context.context_id, SAMPLING, 0),)
        before = Label.UNSAFE if harmful and index % 4 else Label.SAFE
        after = Label.UNSAFE if unsafe else Label.SAFE
        refused = not harmful and random_state.random() < 0.05
        endings = EndingCounts(1, random_state.random() < 0.1, 0, 0, 0)
        kind = "harm" if unsafe else "refusal" if harmful else "help"
        flips.append(
            Flip(prompt.prompt_id, prompt.kind, before, after, False, refused, ids, None, None, endings, kind)  # type: ignore[arg-type]
        )
    return summarize(flips, "search", whole=True)


def make_study() -> Study:
    """Return a study in which every context saw every prompt."""
    kinds = ["harmful"] * (NUM_PROMPTS * 3 // 5) + ["benign"] * (NUM_PROMPTS * 2 // 5)
    prompts = [
        Prompt(text(18), kind, f"category {i % 12}", split="search")  # type: ignore[arg-type]
        for i, kind in enumerate(kinds)
    ]
    contexts = [Context(text(90), operator="reword") for _ in range(NUM_CONTEXTS)]
    for index in range(1, NUM_CONTEXTS):
        parent = contexts[index // 2]
        words = parent.text.split()
        words[index % 80 : index % 80 + 8] = text(8).split()
        contexts[index] = Context(" ".join(words), operator="reword", parents=(parent.context_id,))
    trials = []
    for number, context in enumerate(contexts):
        result = measured(context, prompts, 0.95 - 0.8 * number / NUM_CONTEXTS)
        trial = Trial(number, context, "arm", "complete", 4, result, num_context_tokens=120)
        trials.append(trial.with_confirmed(measurement=result) if number < NUM_FINALISTS else trial)
    for number, placebo in enumerate((Context(""), Context(text(90), template="placebo_neutral"))):
        result = measured(placebo, prompts, 0.02)
        trials.append(
            Trial(NUM_CONTEXTS + number, placebo, "placebo", "complete", 4, result).with_confirmed(measurement=result)
        )
    return Study(
        format=STUDY_FORMAT, name="large", kind=StudyKind.SEARCH,
        settings=CONFIG.model_dump(mode="json") | {"think_tokens": 0},
        model_id="large", revision=None, judge_id="judge", trials=tuple(trials), base_unsafe={}, base_over_refusal={},
        num_rollouts=NUM_CONTEXTS * NUM_PROMPTS, num_tokens=0, prompts=tuple(prompts), winner=trials[0],
        base_answers=tuple((rollout_id("large", prompt.prompt_id, None, SAMPLING, 0),) for prompt in prompts),
        versions={"flipsearch": "0"},
    )  # fmt: skip


def rollouts(study: Study) -> Iterator[Rollout]:
    """Yield the answers without a context, and under finalists and placebos."""
    shown: list[str | None] = [None, *(trial.context.context_id for trial in study.trials if trial.confirm)]
    for context_id in shown:
        for prompt in study.prompts:
            answer = text(ANSWER_WORDS)
            yield Rollout(prompt.prompt_id, context_id, "large", SAMPLING, 0, answer, tuple(range(150)), 40, "stop")


def timed(what: str, act: Callable[[], Any]) -> Any:
    """Return what `act` returns, and print how long it took and the most memory that was used so far."""
    start = time.perf_counter()
    result = act()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{what:<28}{time.perf_counter() - start:6.1f} s   peak so far {memory:,} MB")
    return result


def in_browser(path: Path) -> None:
    """Print how soon the page can be used, how large it is in memory, and how fast it scrolls."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if not chromium:
        print("no browser figures: Chromium or the package playwright is missing")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for number in range(3):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            ready = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
            elements = page.evaluate("document.querySelectorAll('*').length")
            frames = page.evaluate(FIRST_FRAMES)
            facts = f"ready {ready / 1000:.2f} s, {elements:,} elements"
            print(f"load {number + 1}: {facts}, frame {frames[len(frames) // 2]:.0f} ms")
            page.close()
        browser.close()


def main() -> None:
    """Print every figure."""
    study = timed("the study in memory", make_study)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed("write the study file", lambda: write_study_file(study, place / STUDY_FILE))
        print(f"{'study file':<28}{(place / STUDY_FILE).stat().st_size / 1e6:6.1f} MB")
        with Ledger(place / "ledger.db") as ledger:
            made = list(rollouts(study))
            ledger.save_rollouts(made)
            ledger.save_verdicts("judge", ((r.rollout_id, Verdict(Label.SAFE, 0.1, 0.9, "refuses")) for r in made))
            del made
            page = timed("make the page", lambda: leaderboard_page(study, ledger))
        path = place / "leaderboard.html"
        path.write_text(page, encoding="utf-8")
        print(f"{'page':<28}{path.stat().st_size / 1e6:6.1f} MB")
        in_browser(path)
        if "--read" in sys.argv:
            del study, page
            timed("read the study file", lambda: read_study_file(place / STUDY_FILE))


if __name__ == "__main__":
    main()
