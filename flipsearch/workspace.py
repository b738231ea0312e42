"""A command's folder, ledger, judges and models: opened in this order, the costly ones last, and closed together.

    with Workspace(folder, judge) as workspace:      every command that judges: search, score, train, evaluate

    with study_session(config, ...) as session:      search and score: the same study? the same model? --> Runner
        session.finish(run_study(...))

A command that fails before its first rollout or verdict leaves the folders as they were.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from flipsearch.backends.base import check_model, check_rewriter, make_backend
from flipsearch.backends.loading import prepare_local_model
from flipsearch.config import ModelConfig, StudyConfig, is_endpoint
from flipsearch.core.errors import StudyError
from flipsearch.core.files import MARK, RESULT_PACKAGES, hidden_characters, package_versions, write_text
from flipsearch.core.progress import Events, Phase, Progress, Step, announce
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.settings import as_typed, read_toml, toml_text
from flipsearch.core.studies import Study, StudyKind
from flipsearch.judging.accuracy import check_label_files, with_human_labels
from flipsearch.judging.contract import check_identities
from flipsearch.judging.library import OtherJudges, load_judge, remaining_memory_share, respelled, unload_after
from flipsearch.ledger import Ledger, open_ledger
from flipsearch.measuring.runner import SPEED, Runner, sampling_for
from flipsearch.prompts.sets import PromptSet
from flipsearch.reporting.files import earlier_best, write_best, write_study
from flipsearch.reporting.study_file import FINISHED, LEDGER_FILE, SETTINGS_FILE, STUDY_FILE, context_card
from flipsearch.results import SearchResult

EVENTS_FILE = "events.jsonl"
UNFINISHED_SHARE = 0.003
"""Of the time of a search, the share that is spent at most on writing what is known so far."""


WAS_FINISHED = (
    "This study was finished before and is being extended. Until it is finished again, its study file and best.txt are "
    "those from before; the earlier command shows them again."
)


class Workspace(ExitStack):
    """The open folder of a command, with its ledger, judges and models.

    Judges are checked before the folder is made and unloaded at the end, whatever ends it.
    """

    def __init__(self, folder: Path, *judges: Judge | None) -> None:
        super().__init__()
        check_identities(*judges)
        self.folder, self.judges = folder, [judge for judge in judges if judge is not None]

    def __enter__(self) -> Self:
        self.ledger = self.enter_context(open_ledger(self.folder / LEDGER_FILE, owns_folder=True))
        self.enter_context(unload_after(*self.judges))
        return self

    def load(self, role: str, config: ModelConfig, memory_share: float) -> Backend:
        """Load a model that is unloaded at the end; StudyError if this folder was worked on with another one."""
        backend = make_backend(config, memory_share=memory_share)
        self.callback(backend.close)
        self.require_same(role, backend.model_id, f"another {role}, precision or chat template")
        return backend

    def require_same(self, key: str, value: str, what: str) -> None:
        """Note what the folder is about, once; StudyError if it is about something else."""
        if self.ledger.note(key, value).value != value:
            raise StudyError(f"study '{self.folder.name}' was started with {what}; give another --study name.")


@dataclass(frozen=True)
class StudySession:
    """A study that can be run: its settings, prompts, models and judges, at its open folder."""

    workspace: Workspace
    config: StudyConfig
    command: str
    prompts: PromptSet
    runner: Runner
    rewriter: Backend | None
    """The model that rewrites contexts; None without one."""
    others: OtherJudges
    """The judges beside the one that searches."""

    def log_start(self, **facts: Any) -> None:
        """Log that the work begins: the command, its settings, the versions, and `facts`."""
        settings, versions = self.config.model_dump(mode="json"), package_versions(RESULT_PACKAGES)
        self.runner.emit("launch", command=self.command.split()[0], settings=settings, versions=versions, **facts)

    def finish(self, study: Study, best: Path | None) -> SearchResult:
        """Write the files of a finished study, with the notes on its prompt files, and log its winner."""
        folder, study = self.workspace.folder, self._with_prompts(study)
        self.workspace.ledger.note(FINISHED.format(study.num_rollouts), study.name)
        result = write_result(study, folder, best, self.workspace.ledger)
        study = result.study
        card = context_card(study, study.winner) if study.winner else {}
        winner = {key: card.get(key) for key in ("context_id", "metrics", "net_flip_rate", "optimism")}
        numbers = {"num_rollouts": study.num_rollouts, "num_tokens": study.num_tokens}
        self.runner.emit("done", winner=winner if card else None, **numbers, notes=list(study.notes))
        return result

    def unfinished_writer(self) -> Callable[[Callable[[], Study]], None]:
        """Return what writes an unfinished study after a rung, without its answers, and so seldom that it costs little.

        What was finished before, with fewer contexts, keeps its file until this study is finished; the page says so.
        """
        due, was_finished = 0.0, (self.workspace.folder / STUDY_FILE).exists()

        def write(make: Callable[[], Study]) -> None:
            nonlocal due
            start = time.monotonic()
            if start >= due:
                study = self._with_prompts(make())
                if was_finished:
                    study = replace(study, notes=(WAS_FINISHED, *study.notes))
                write_study(study, self.workspace.folder)
                due = time.monotonic() + (time.monotonic() - start) / UNFINISHED_SHARE

        return write

    def _with_prompts(self, study: Study) -> Study:
        settings = {**study.settings, "prompts_id": self.prompts.prompts_id}
        return replace(study, settings=settings, notes=(*self.prompts.notes, *_hidden_notes(study), *study.notes))


def write_result(study: Study, folder: Path, best: Path | None, ledger: Ledger) -> SearchResult:
    """Write the files of a finished study, with what human labels show of its judge by now, and its winner to `best`.

    A winning text of another study at `best` stays where this one is not confirmed, or flips fewer of the same prompts.
    """
    announce("writing the report")
    study = with_human_labels(study, folder)
    write_study(study, folder, ledger)
    before = earlier_best(best, study) if best else None
    is_kept = before is not None and not (study.is_confirmed and not before.flips_more)
    if best and not is_kept:
        write_best(study, best)
    written = (folder / "best.txt" if is_kept else best) if study.is_confirmed else None
    return SearchResult(study, folder, written, before, is_kept)


@contextmanager
def study_session(
    config: StudyConfig,
    command: str,
    prompts: PromptSet,
    name: str,
    progress: Progress | None = None,
    rewriter: ModelConfig | None = None,
    before_loading: Callable[[Ledger], None] | None = None,
) -> Iterator[StudySession]:
    """Open a study: its judges, folder, ledger and models, checked in this order against what the folder holds.

    `rewriter` are the settings of the model that rewrites contexts; where they name the same model, it is loaded once.
    `before_loading` is called when all but the models has been checked.
    """
    judge, confirm = load_judge(config.judge), getattr(config, "confirm_judge", None)
    others = OtherJudges(load_judge(confirm) if confirm else None, tuple(map(load_judge, config.second_judges)))
    check_model(config)
    if rewriter:
        check_rewriter(rewriter)
    with Workspace(config.reports / name, judge, others.confirm, *others.second) as workspace:
        check_label_files(others.confirm or judge, workspace.folder)  # not only when a finished study is to be written
        workspace.require_same("command", command, "another command or other contexts")
        workspace.require_same("prompts", prompts.prompts_id, "other prompts")
        _write_settings(workspace.folder, config)
        if not is_endpoint(config.model) and config.backend in ("transformers", "vllm"):
            prepare_local_model(config)
        second_model = rewriter if rewriter and rewriter.model != config.model else None
        if second_model:
            check_rewriter(second_model, fetch=True)
        if before_loading:
            before_loading(workspace.ledger)
        if progress:
            progress(Step(Phase.LOADING, config.model), 0, 0, 0, 0)
        share = remaining_memory_share(*workspace.judges) / (2 if second_model else 1)
        backend = workspace.load("model", config, share)
        second = workspace.load("rewriter", second_model, share) if second_model else None
        events, rule = Events(workspace.folder / EVENTS_FILE), config.sample_rule()
        runner = Runner(backend, judge, workspace.ledger, sampling_for(backend, config), progress, events, rule)
        rewriting = (second or backend) if rewriter else None
        yield StudySession(workspace, config, command, prompts, runner, rewriting, others)


def _hidden_notes(study: Study) -> Iterator[str]:
    """Yield that a context which may be used holds characters that no reader sees."""
    chosen = [study.winner] if study.kind is StudyKind.SEARCH else [t for t in study.trials if t.role == "arm"]
    for trial in filter(None, chosen):
        if counts := hidden_characters(trial.context.text):
            kinds = ", ".join(f"{num:,} {kind}" for kind, num in counts.items())
            whose = "The winner" if study.kind is StudyKind.SEARCH else f"Context {trial.number + 1}"
            yield (
                f"{whose} holds characters that the model sees and no reader does ({kinds}). {MARK} marks each; remove "
                "them unless you know what they are for."
            )


def length_and_speed(ledger: Ledger) -> tuple[float | None, float | None]:
    """Return the mean completion tokens of the rollouts in a ledger, and its tokens per second; None if not known."""
    speed = ledger.notes().get(SPEED)
    return ledger.mean_length(), float(speed.value) if speed else None


def known_length_and_speed(folder: Path) -> tuple[float | None, float | None]:
    """Return what the ledger of a study's folder knows of them, if there is one."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return None, None
    with Ledger(path, read_only=True) as ledger:
        return length_and_speed(ledger)


def _write_settings(folder: Path, config: StudyConfig) -> None:
    """Write study.toml, or check that the folder holds a study of the same settings."""
    path = folder / SETTINGS_FILE
    if path.exists():
        before, now = read_toml(path), config.model_dump(mode="json", exclude_none=True)
        before |= respelled(before)
        for key in sorted((set(now) | set(before)) - config.changeable_fields()):
            if before.get(key) != now.get(key):
                earlier, given = (as_typed(type(config), key, values.get(key)) for values in (before, now))
                raise StudyError(
                    f"study '{folder.name}' was started with {earlier}, and this command has {given}; "
                    "give the same options to continue it, or another --study name."
                )
    write_text(path, toml_text(config))
