"""Where a study is worked on: its folder, its ledger, and the model and judge that it is measured with.

    judge --> folder and ledger --same study?--> model --same model?--> Bench --> Study --> files

A command that fails leaves the folders as they were.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flipsearch import registry
from flipsearch.config import ReportConfig, read_toml, toml_text
from flipsearch.errors import StudyError
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.measure import Bench, Progress
from flipsearch.prompts.sets import PromptSet
from flipsearch.protocols import Backend
from flipsearch.records import Study
from flipsearch.reporting.files import write_best, write_study, write_text
from flipsearch.results import Findings

SETTINGS_FILE, LEDGER_FILE = "study.toml", "ledger.db"


class Desk:
    """What a study works with: judge, folder, ledger and model, opened in this order, the costly one last."""

    def __init__(
        self, config: ReportConfig, command: str, prompts: PromptSet, progress: Progress | None, name: str
    ) -> None:
        self.folder, self.prompts = config.reports / name, prompts
        judge = load_judge(config.judge)
        registry.check_model(config)
        with kept_on_success(self.folder) as self.ledger:
            self._same("command", command, "another command or other contexts")
            self._same("prompts", prompts.prompts_id, "other prompts")
            _write_settings(self.folder, config)
            backend = registry.make_backend(config)
            with _closed_on_failure(backend):
                self._same("model", backend.model_id, "another model, precision or chat template")
        self.bench = Bench(backend, judge, self.ledger, config.sampling(), progress)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.backend.close()
        self.ledger.close()

    def finish(self, study: Study, best: Path | None) -> Findings:
        """Write the files of a finished study, with what the prompts' files gave to note."""
        settings = {**study.settings, "prompts_id": self.prompts.prompts_id}
        study = replace(study, settings=settings, notes=(*self.prompts.notes, *study.notes))
        write_study(study, self.folder)
        if best:
            write_best(study, best)
        return Findings(study, self.folder, best)

    def _same(self, key: str, value: str, what: str) -> None:
        """Note what the study is on, once; a study on something else needs another name."""
        if self.ledger.note(key, value).value != value:
            name = self.folder.name
            raise StudyError(f"study '{name}' was started with {what}; give another --study name.")


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


@contextmanager
def _closed_on_failure(backend: Backend) -> Iterator[None]:
    """Close the backend if the block fails."""
    try:
        yield
    except BaseException:
        backend.close()
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def _write_settings(folder: Path, config: ReportConfig) -> None:
    """Write study.toml, or check that the folder holds a study of the same settings."""
    path = folder / SETTINGS_FILE
    if path.exists():
        before, now = read_toml(path), config.model_dump(mode="json", exclude_none=True)
        for key in sorted((set(now) | set(before)) - config.free_fields()):
            if before.get(key) != now.get(key):
                raise StudyError(
                    f"study '{folder.name}' was started with {key} = {before.get(key)!r}, got {now.get(key)!r}; "
                    "give the same settings to continue it, or another --study name."
                )
    write_text(path, toml_text(config))
