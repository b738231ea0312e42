"""Where a study is worked on: its folder, its ledger, and the model and judge that it is measured with.

    judge --> folder and ledger --same study?--> model --same model?--> Runner --> Study --> files

A command that fails leaves the folders as they were.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flipsearch.backends.base import check_model, check_rewriter, make_backend
from flipsearch.config import ModelConfig, ReportConfig, read_toml, toml_text
from flipsearch.core.errors import StudyError, unknown_name
from flipsearch.core.events import Events
from flipsearch.core.files import write_text
from flipsearch.core.package import RESULT_PACKAGES, package_versions
from flipsearch.core.progress import Progress
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.studies import Study
from flipsearch.judging.accuracy import load_accuracy
from flipsearch.judging.contract import check_identities
from flipsearch.judging.correction import with_judge_error
from flipsearch.judging.labels import load_labels
from flipsearch.judging.library import OtherJudges, load_judge, remaining_memory_share, unload_after
from flipsearch.judging.spec import respelled
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import PromptSet
from flipsearch.reporting.card import context_card
from flipsearch.reporting.files import write_best, write_study
from flipsearch.results import SearchResult

SETTINGS_FILE, LEDGER_FILE, EVENTS_FILE = "study.toml", "ledger.db", "events.jsonl"


class Workspace:
    """What a study works with: judge, folder, ledger and models, opened in this order, the costly ones last.

    `rewriter` are the settings of the model that rewrites contexts; where they name the same model, it is loaded once.
    """

    def __init__(
        self,
        config: ReportConfig,
        command: str,
        prompts: PromptSet,
        progress: Progress | None,
        name: str,
        rewriter: ModelConfig | None = None,
    ) -> None:
        self.folder, self.prompts = config.reports / name, prompts
        judge, confirm = load_judge(config.judge), getattr(config, "confirm_judge", None)
        second = tuple(map(load_judge, config.second_judges))
        self.others = OtherJudges(load_judge(confirm) if confirm else None, second)
        """The judges beside the one that searches."""
        check_model(config)
        if rewriter:
            check_rewriter(rewriter)
        check_identities(judge, self.others.confirm, *second)
        _check_human_labels(self.others.confirm or judge, self.folder)
        with kept_on_success(self.folder) as self.ledger, ExitStack() as models:
            self._same("command", command, "another command or other contexts")
            self._same("prompts", prompts.prompts_id, "other prompts")
            _write_settings(self.folder, config)
            share = remaining_memory_share(judge, self.others.confirm, *self.others.second)
            other = rewriter if rewriter and rewriter.model != config.model else None
            if other:
                check_rewriter(other, fetch=True)
                share /= 2
            backend = self._load("model", config, models, share)
            self.rewriter: Backend | None = backend if rewriter else None
            """The model that rewrites contexts; None without one."""
            if other:
                self.rewriter = self._load("rewriter", other, models, share)
            models.enter_context(unload_after(judge, self.others.confirm, *self.others.second))
            self._models = models.pop_all()
        events, rule = Events(self.folder / EVENTS_FILE), config.sample_rule()
        self.runner = Runner(backend, judge, self.ledger, config.sampling(), progress, events, rule)
        self._command, self._config = command, config

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._models.close()
        finally:
            self.ledger.close()

    def launch(self, **facts: Any) -> None:
        """Tell that the work begins: the command, its settings, the versions, and `facts`."""
        settings, versions = self._config.model_dump(mode="json"), package_versions(RESULT_PACKAGES)
        self.runner.emit("launch", command=self._command.split()[0], settings=settings, versions=versions, **facts)

    def finish(self, study: Study, best: Path | None) -> SearchResult:
        """Write the files of a finished study, with what the prompts' files gave to note."""
        settings = {**study.settings, "prompts_id": self.prompts.prompts_id}
        study = replace(study, settings=settings, notes=(*self.prompts.notes, *study.notes))
        study = with_human_labels(study, self.folder)
        write_study(study, self.folder)
        if best:
            write_best(study, best)
        self._log_done(study)
        return SearchResult(study, self.folder, best)

    def _load(self, role: str, config: ModelConfig, models: ExitStack, memory_share: float) -> Backend:
        """Load a model that `models` will close, the same one as whenever this study was worked on before."""
        backend = make_backend(config, memory_share=memory_share)
        models.callback(backend.close)
        self._same(role, backend.model_id, f"another {role}, precision or chat template")
        return backend

    def _log_done(self, study: Study) -> None:
        card = context_card(study, study.winner) if study.winner else {}
        winner = {key: card.get(key) for key in ("context_id", "metrics", "net_flip_rate", "optimism")}
        numbers = {"num_rollouts": study.num_rollouts, "num_tokens": study.num_tokens}
        self.runner.emit("done", winner=winner if card else None, **numbers, notes=list(study.notes))

    def _same(self, key: str, value: str, what: str) -> None:
        """Note what the study is on, once; a study on something else needs another name."""
        if self.ledger.note(key, value).value != value:
            name = self.folder.name
            raise StudyError(f"study '{name}' was started with {what}; give another --study name.")


def with_human_labels(study: Study, folder: Path) -> Study:
    """Return a study with its judge's errors taken back, as far as people's labels tell them by now."""
    return with_judge_error(study, load_accuracy(study.last_judge_id, folder.parent), load_labels(folder))


def _check_human_labels(judge: Judge, folder: Path) -> None:
    """Find a torn file before the work, not when a finished study is to be written."""
    load_accuracy(judge.identity, folder.parent)
    load_labels(folder)


def study_folder(study: Path | str, reports: Path | None) -> Path:
    """Return the folder of a study, given as it is or by its name under `reports`; StudyError if there is none."""
    folder = Path(study)
    if not folder.is_dir():
        folder = (reports or ReportConfig().reports) / study
    if not folder.is_dir():
        known = [path.parent.name for path in folder.parent.glob(f"*/{SETTINGS_FILE}")]
        raise StudyError(unknown_name("study", str(study), known))
    return folder.resolve() if folder.name in ("", ".", "..") else folder


def ledger_place(study: Path | str, reports: Path | None) -> Path | str:
    """Return where the ledger of a study lies; a ledger's own file or database URL is returned as it is."""
    if "://" in str(study) or Path(study).is_file():
        return study
    return study_folder(study, reports) / LEDGER_FILE


def mean_length(folder: Path) -> float | None:
    """Return the mean completion tokens of the rollouts in a study's ledger; None if there is none that tells."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return None
    with Ledger(path, read_only=True) as ledger:
        return ledger.mean_length()


@contextmanager
def kept_on_success(folder: Path) -> Iterator[Ledger]:
    """Open the ledger of a folder and leave it open; if the block fails, close it and remove the folders made for it.

    Nothing is removed if the ledger cannot be opened: then it is another process that works there.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        ledger = Ledger(folder / LEDGER_FILE)
    except BaseException:
        _remove_empty(missing)
        raise
    try:
        yield ledger
    except BaseException:
        ledger.close()
        for path in missing[:1]:
            shutil.rmtree(path, ignore_errors=True)
        _remove_empty(missing[1:])
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def _write_settings(folder: Path, config: ReportConfig) -> None:
    """Write study.toml, or check that the folder holds a study of the same settings."""
    path = folder / SETTINGS_FILE
    if path.exists():
        single_draw = {"samples": 1, "unsafe_at": 1}  # not written down by studies from before there were several
        before, now = single_draw | read_toml(path), config.model_dump(mode="json", exclude_none=True)
        before |= respelled(before)
        for key in sorted((set(now) | set(before)) - config.free_fields()):
            if before.get(key) != now.get(key):
                raise StudyError(
                    f"study '{folder.name}' was started with {key} = {before.get(key)!r}, got {now.get(key)!r}; "
                    "give the same settings to continue it, or another --study name."
                )
    write_text(path, toml_text(config))
