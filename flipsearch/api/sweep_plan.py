"""The plan of a sweep: which contexts are trained under, and the trainings of its grid, checked before any is made."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import from_json

from flipsearch.backends.base import model_identity
from flipsearch.config import SWEEPS, LearningConfig, SweepConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.files import can_be_stored, json_text, shortened, storable, write_text
from flipsearch.core.records import Context, content_id
from flipsearch.core.settings import check_folder_name, make_config
from flipsearch.core.studies import Study, Trial
from flipsearch.core.sweeps import SweepRun, SweptContext
from flipsearch.core.trainings import METHODS
from flipsearch.judging.library import load_judge
from flipsearch.reporting.files import read_study
from flipsearch.reporting.format import names_of
from flipsearch.reporting.study_file import context_card, study_folder
from flipsearch.settings import Given, card_settings, library_for, resolve
from flipsearch.templating.library import FILE_ENDINGS, Card, control_context, given_cards, given_contexts, sealed
from flipsearch.training.plan import TrainPlan, check_cards, plan_training
from flipsearch.training.processes import num_processes

CRITICAL_TOKENS = 10
EVALUATED = (
    "thinking", "think_tokens", "device", "dtype", "batch_size", "max_tokens", "prompts", "harmful", "benign", "judge",
    "contexts", "max_prompts",
)  # fmt: skip
"""Settings that the contexts and the checkpoints are measured with, as they were trained with."""
CHECKPOINTS, LONGEST_TITLE = "checkpoints", 40
Part = TypeVar("Part", SweptContext, SweepRun)


@dataclass(frozen=True, slots=True)
class PlannedContext:
    """A context of a sweep, and the file that trainings and measurements read it from."""

    context: Context
    name: str
    file: Path
    is_placebo: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTraining:
    """A cell of the grid."""

    identity: str
    context: PlannedContext
    method: str
    data_share: float
    seed: int
    settings: Mapping[str, Any]
    """Keywords of `train`."""
    num_steps: int
    tokens_at_most: int

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder and of the file of its result."""
        what = f"{self.context.context.context_id[:8]}-{self.method}-{100 * self.data_share:g}-{self.seed}"
        return f"{what}-{self.identity[:6]}"

    @property
    def title(self) -> str:
        """What is trained, for people."""
        return f"{self.context.name}, {self.method}, {100 * self.data_share:g} % of the prompts, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep, checked."""

    config: SweepConfig
    folder: Path
    contexts: tuple[PlannedContext, ...]
    trainings: tuple[PlannedTraining, ...]
    evaluated: Mapping[str, Any]
    """Settings that contexts and checkpoints are measured with."""
    basis: str
    """Content hash of the model and of what it is measured on."""
    critical_tokens: int
    num_prompts: int
    """Training prompts, all of them."""
    notes: tuple[str, ...]

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def num_finished(self) -> int:
        """Trainings whose result is there already."""
        return sum(read_part(self.result_file(part), SweepRun, part.identity) is not None for part in self.trainings)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--plan --json` prints."""
        settings = ("method", "data_share", "seed", "num_steps", "tokens_at_most")
        return {
            "folder": str(self.folder),
            "contexts": [planned.name for planned in self.contexts],
            "num_prompts": self.num_prompts,
            "num_finished": self.num_finished,
            "trainings": [
                {"context": training.context.name} | {name: getattr(training, name) for name in settings}
                for training in self.trainings
            ],
            "notes": list(self.notes),
        }

    def result_file(self, training: PlannedTraining) -> Path:
        """Return where the result of a training is kept."""
        return self.folder / "runs" / f"{training.name}.json"


@contextmanager
def planned_sweep(given: Given[SweepConfig], *, keeps_folder: bool) -> Iterator[SweepPlan]:
    """Yield the plan of a sweep; a folder that is made for it stays if the block succeeds and `keeps_folder`."""
    base = make_config(SweepConfig, given.file, given.keywords)
    if num_processes() > 1:
        raise ConfigError("sweep makes one training after the other in one process; start it without a launcher.")
    if base.split == "all":
        raise ConfigError("--split all trains on the evaluation prompts, on which sweep measures harm; leave it out.")
    typed = {name: getattr(base, name) for name in base.model_fields_set if getattr(base, name) is not None}
    if base.context and "num_contexts" in typed:
        raise ConfigError("--num-contexts chooses among those of a --study; with --context all are trained under.")
    if base.teacher and not any(METHODS[method].needs_teacher for method in base.methods):
        raise ConfigError(f"--teacher is '{base.teacher}', but --methods {','.join(base.methods)} need none; drop it.")
    study = read_study(study_folder(base.study, base.reports)) if base.study else None
    trials = _spread(study, base.num_contexts - 1) if study else []
    cards = [Card.model_validate(context_card(study, trial)) for trial in trials] if study else []
    cards += [card for name in base.context for card in given_cards(name)]
    config = resolve(make_config(SweepConfig, card_settings(cards, typed), typed))
    check_cards(cards, typed.get("model") or (cards[0].model if cards else None) or config.model)
    if config.name is not None:
        check_folder_name("--name", config.name, "--reports")
    load_judge(config.judge)
    names = names_of(study) if study else {}
    chosen = {trial.context.context_id: (trial.context, names[trial.number]) for trial in trials} or _given(config)
    identity = config.identity(sorted(chosen))
    folder = (config.reports / SWEEPS / (config.name or f"{config.short_name}-{identity[:6]}")).absolute()
    library = library_for(config.model, config.contexts)
    if not all(can_be_stored(context.text) for context, _ in chosen.values()):
        raise ConfigError("a context holds half of a character, which no file can hold; leave it out.")
    neutral = control_context(library, "neutral", [context for context, _ in chosen.values()][-1])
    chosen.setdefault(neutral.context_id, (neutral, "placebo: neutral"))
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        contexts = tuple(
            PlannedContext(context, storable(name), card_file(folder, context), id == neutral.context_id)
            for id, (context, name) in chosen.items()
        )
        yield _with_trainings(config, typed, folder, contexts)
    except BaseException:
        keeps_folder = False
        raise
    finally:
        if missing and not keeps_folder:
            rmtree(folder, ignore_errors=True)
            for place in missing[1:]:  # unless another command works there by now
                with suppress(OSError):
                    place.rmdir()


def _spread(study: Study, num: int) -> list[Trial]:
    """Return trials whose flip rates lie over the whole range, low ones first."""
    measured = [trial for trial in study.trials if trial.role == "arm" and trial.state != "failed"]
    left = sorted((trial for trial in measured if trial.search.flip_rate.n), key=_flip_rate)
    if not left:
        raise ConfigError(f"--study: '{study.name}' holds no measured contexts but placebos; give another one.")
    low, high, chosen = _flip_rate(left[0]), _flip_rate(left[-1]), []
    for index in range(min(num, len(left))):
        wanted = low + (high - low) * (index / (num - 1) if num > 1 else 1.0)
        chosen.append(min(left, key=lambda trial: abs(_flip_rate(trial) - wanted)))
        left.remove(chosen[-1])
    return sorted(chosen, key=_flip_rate)


def _flip_rate(trial: Trial) -> float:
    return trial.search.flip_rate.value or 0.0


def _given(config: SweepConfig) -> dict[str, tuple[Context, str]]:
    """Return the contexts that the user names, by id, each with a name for people."""
    library = library_for(config.model, config.contexts)
    named: dict[str, tuple[Context, str]] = {}
    for text in config.context:
        for context in given_contexts([text], library):
            name = Path(text).stem if text.endswith(FILE_ENDINGS) else shortened(text, LONGEST_TITLE)
            named.setdefault(context.context_id, (context, name))
    return named


def card_file(folder: Path, context: Context) -> Path:
    """Return the file that a context is read from: its text and where it goes."""
    file = folder / "contexts" / f"{context.context_id[:16]}.json"
    write_text(file, json_text({"text": context.text, "placement": context.placement}))  # also over an edited one
    return file


def _with_trainings(
    config: SweepConfig, typed: Mapping[str, Any], folder: Path, contexts: tuple[PlannedContext, ...]
) -> SweepPlan:
    """Return the plan of all trainings: on the same prompts, and with as many steps as on all of them."""
    names = LearningConfig.model_fields.keys() & (typed.keys() | {"model", "prompts", "harmful", "benign"})
    shared = {name: getattr(config, name) for name in names if getattr(config, name) not in (None, ())}
    shared |= {name: getattr(config, name) for name in ("thinking", "max_tokens", "think_tokens")}
    shared |= {"reports": folder, "checkpoints": folder / CHECKPOINTS, "sample_prompts": 0}
    whole = plan_training(_settings(config, shared, contexts[0], config.methods[0], {}))
    evaluated = {name: getattr(whole.config, name) for name in EVALUATED}
    basis = content_id(model_identity(whole.config), evaluated, config.reasoning, config.max_problems)
    trainings = []
    for data_share, method, context in product(dict.fromkeys(config.data_sizes), config.methods, contexts):
        more = {"data_share": data_share, "max_steps": whole.num_steps}
        plan = plan_training(_settings(config, shared, context, method, more))
        for seed in range(config.seed, config.seed + config.seeds):
            settings = _settings(config, shared, context, method, {**more, "seed": seed})
            trainings.append(_training(plan, basis, context, settings))
    critical = config.critical_tokens or whole.config.horizon or CRITICAL_TOKENS
    # All kinds of trainings once, then again: a sweep that is stopped compares what it has.
    trainings.sort(key=lambda training: training.seed)
    return SweepPlan(
        config, folder, contexts, tuple(trainings), evaluated, basis, critical, len(whole.prompts), whole.notes
    )


def _settings(
    config: SweepConfig, shared: Mapping[str, Any], context: PlannedContext, method: str, more: Mapping[str, Any]
) -> dict[str, Any]:
    teacher = {"teacher": config.teacher if METHODS[method].needs_teacher else None}
    return {**shared, **teacher, **more, "context": [str(context.file)], "method": method}


def _training(plan: TrainPlan, basis: str, context: PlannedContext, settings: Mapping[str, Any]) -> PlannedTraining:
    # The sweep's folder changes no result.
    places = {"context", "checkpoints", "reports", "name", "seed"}
    learnt = plan.config.model_dump(mode="json", exclude=places | plan.config.changeable_fields())
    return PlannedTraining(
        identity=content_id(basis, learnt, settings["seed"], plan.identity),
        context=context,
        method=plan.config.method,
        data_share=plan.config.data_share,
        seed=settings["seed"],
        settings=settings,
        num_steps=plan.num_steps,
        tokens_at_most=plan.tokens_at_most,
    )


def read_part(file: Path, kind: type[Part], identity: str) -> Part | None:
    """Return a part that was finished before, if it was made from the same and is as it was written."""
    with suppress(OSError, ValueError):
        content = from_json(file.read_bytes())
        part = TypeAdapter(kind).validate_python(content)
        return part if part.identity == identity and content == sealed(content) else None
    return None


def write_part(file: Path, kind: type[Part], part: Part) -> Part:
    """Keep a finished part, and return it."""
    write_text(file, json_text(sealed(TypeAdapter(kind).dump_python(part, mode="json"))))
    return part
