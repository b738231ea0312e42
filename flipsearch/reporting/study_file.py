"""study.json.gz: a study with its prompts and contexts, its flips in columns: half a million take a few megabytes.

The fields of `Study` are JSON as they are, but for three. `winner` is the position of its trial. The flips of each
measurement are an entry of `flips`, in the order of the trials (search, confirm) and of the candidates for benign
prompts. `endings` are those that occur, which flips refer to.

Context cards, as JSON: all that is needed to use, repeat or doubt a context that a study found; the winner's comes with
those of the portfolio and of the context for benign prompts. Rates carry value, count, n and a 95 % interval.
"""

import gzip
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from flipsearch.config import StudyConfig
from flipsearch.core.errors import StudyError, one_line, unknown_name
from flipsearch.core.files import atomic_write
from flipsearch.core.measurements import EndingCounts, Flip, Measurement, json_value
from flipsearch.core.records import AnswerKind, Label, Prompt
from flipsearch.core.studies import BenignContext, Portfolio, Study, Trial
from flipsearch.reporting.columns import columns_of
from flipsearch.reporting.format import SHARED_ERRORS
from flipsearch.templating.library import CARD_VERSION, sealed

STUDY = TypeAdapter(Study)
STUDY_FILE, UNFINISHED_FILE = "study.json.gz", "unfinished.json.gz"
CHECKPOINTS_FILE = "checkpoints.txt"
"""In a study's folder: where the checkpoints lie that were trained under its contexts, seen from there; one a line."""
SETTINGS_FILE, LEDGER_FILE = "study.toml", "ledger.db"
"""The settings of a study, written when it begins; its rollouts and verdicts."""
FINISHED = "finished with {} rollouts"
"""The note in its ledger that a study's files were written."""
EARLIER_FILE = "study.json"
"""The study file of earlier versions."""
LARGEST_FILE, MOST_VALUES = 2**28, 2**24
"""Bytes of a study file that is unpacked, and commas in it: a small file of others may hold endless zeros, or lists."""
LABELS = {"s": Label.SAFE, "u": Label.UNSAFE, "x": Label.UNSCORED}
REFUSALS = {"y": True, "n": False, "-": None}
KINDS: dict[str, AnswerKind | None] = {
    "r": "refusal",
    "d": "redirection",
    "h": "help",
    "u": "harm",
    "x": "degenerate",
    "-": None,
}
LETTERS: dict[str, dict[str, Any]] = {
    "before": LABELS,
    "after": LABELS,
    "refused_before": REFUSALS,
    "refused_after": REFUSALS,
    "kind_after": KINDS,
}
"""Field of a flip -> what its letters mean."""


@dataclass(frozen=True, slots=True)
class FlipColumns:
    """The flips of one measurement: a letter of a text, or an item of a list, is one flip."""

    prompts: list[int]
    """Positions among the study's prompts."""
    before: str
    after: str
    refused_before: str
    refused_after: str
    kind_after: str
    unsafe_share_before: list[float | None] | None
    """None without any."""
    unsafe_share_after: list[float | None] | None
    rollouts: list[str]
    """Ids, separated by blanks."""
    endings: list[int]
    """Positions among the endings of the file."""


Endings = list[EndingCounts | None]
CONTENT = TypeAdapter(tuple[list[FlipColumns], Endings])


def write_study_file(study: Study, path: Path) -> None:
    """Write a study: the same bytes for the same study."""
    place = {prompt.prompt_id: index for index, prompt in enumerate(study.prompts)}
    endings: dict[EndingCounts | None, int] = {}
    columns: list[FlipColumns] = []

    def without_flips(measured: Measurement) -> Measurement:
        columns.append(_columns(measured.flips, place, endings))
        return replace(measured, flips=())

    bare = replace(_mapped(study, without_flips), winner=None)
    content = {field.name: getattr(bare, field.name) for field in fields(Study)}
    content |= {"winner": study.trials.index(study.winner) if study.winner else None}
    content |= {"endings": list(endings), "flips": columns}
    with atomic_write(path) as partial:
        partial.write_bytes(gzip.compress(to_json(content), compresslevel=6, mtime=0))


def read_study_file(path: Path) -> Study:
    """Read a study; raises StudyError, in one line, if there is none, or it is damaged or of another version."""
    try:
        with gzip.open(path) as file:
            packed = file.read(LARGEST_FILE + 1)
        if len(packed) > LARGEST_FILE or packed.count(b",") > MOST_VALUES:
            raise StudyError(f"{path}: no study, as it unpacks into more than any study holds; run the search again.")
        content = from_json(packed)
        del packed
        winner = content.pop("winner", None)
        bare = STUDY.validate_python(content)
        flips, endings = CONTENT.validate_python((content["flips"], content["endings"]))
        places = (min(positions, default=0) for columns in flips for positions in (columns.prompts, columns.endings))
        if min([winner or 0, *places]) < 0:  # which Python would count from the end
            raise ValueError("a position below 0")
        if len(bare.base_answers) != len(bare.prompts) or not all(bare.base_answers):
            raise ValueError("not as many answers without a context as prompts")
        left = deque(flips)
        study = _mapped(bare, lambda measured: replace(measured, flips=_flips(left.popleft(), bare.prompts, endings)))
        if left:
            raise ValueError("more columns than measurements")
        return study if winner is None else replace(study, winner=study.trials[winner])
    except ValidationError as error:
        why = first_fault(error)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        why = "file: it is no gzip file, or cut off"
    except OSError as error:
        if (earlier := path.with_name(EARLIER_FILE)).is_file():
            raise StudyError(f"{earlier}: a study of an earlier version; run the search again.") from error
        raise StudyError(f"no finished study at '{path}': {error.strerror}; run the search first.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        why = f"file: its columns do not fit together ({type(error).__name__})"
    raise StudyError(f"{path}: no finished study of this version: {why}; run the search again.")


@contextmanager
def expects_sound_study(path: Path) -> Iterator[None]:
    """Raise StudyError, in one line, where the numbers of a study that was read cannot be computed with."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        why = f"its numbers do not fit together ({one_line(error)})"
        raise StudyError(f"{path}: {why}; if it was edited, run the search again.") from error


def first_fault(error: ValidationError) -> str:
    """Return where a file is not as expected first, and how."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


def _mapped(study: Study, change: Callable[[Measurement], Measurement]) -> Study:
    """Return a study with each of its measurements changed, in the order of the file."""

    def changed(trial: Trial) -> Trial:
        trial = replace(trial, search=change(trial.search))
        return trial.with_confirmed(measurement=change(trial.confirm)) if trial.confirm else trial

    trials, benign = tuple(map(changed, study.trials)), study.benign
    if benign:
        benign = replace(benign, candidates=tuple(map(changed, benign.candidates)))
    return replace(study, trials=trials, benign=benign)


def _columns(flips: Sequence[Flip], place: dict[str, int], endings: dict[EndingCounts | None, int]) -> FlipColumns:
    """Return the columns of flips; `endings` gets those that are new."""
    columns: dict[str, Any] = {}
    for name, meanings in LETTERS.items():
        letters = {meaning: letter for letter, meaning in meanings.items()}
        columns[name] = "".join(letters[getattr(flip, name)] for flip in flips)
    for name in ("unsafe_share_before", "unsafe_share_after"):
        shares = [getattr(flip, name) for flip in flips]
        columns[name] = shares if any(share is not None for share in shares) else None
    return FlipColumns(
        prompts=[place[flip.prompt_id] for flip in flips],
        rollouts=[" ".join(flip.rollout_ids) for flip in flips],
        endings=[endings.setdefault(flip.endings, len(endings)) for flip in flips],
        **columns,
    )


def _flips(columns: FlipColumns, prompts: Sequence[Prompt], endings: Endings) -> tuple[Flip, ...]:
    """Invert `_columns`; ValueError or LookupError if the columns do not fit together."""
    none = [None] * len(columns.prompts)
    values: dict[str, Iterable[Any]] = {
        **{name: [meanings[letter] for letter in getattr(columns, name)] for name, meanings in LETTERS.items()},
        "unsafe_share_before": columns.unsafe_share_before or none,
        "unsafe_share_after": columns.unsafe_share_after or none,
        "rollout_ids": [tuple(ids.split()) for ids in columns.rollouts],
        "endings": [endings[index] for index in columns.endings],
    }
    flips = []
    for index, *row in zip(columns.prompts, *values.values(), strict=True):
        prompt = prompts[index]
        rest = dict(zip(values, row, strict=True))
        flips.append(Flip(prompt_id=prompt.prompt_id, kind=prompt.kind, group=prompt.group, **rest))
    return tuple(flips)


ORACLE = (
    "A prompt counts as flipped if any of the contexts flips it. Nothing says beforehand which one will; a training "
    "finds out by trying the teacher under each of them, in this order."
)
PROMPT_SETTINGS = ("prompts", "harmful", "benign", "prompts_id")
SAMPLING_SETTINGS = ("max_tokens", "think_tokens", "temperature", "top_p", "top_k", "seed", "thinking")


def context_card(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the card of a trial of a study, best.json for the winner; columns.py adds the figures it marks for it."""
    context, settings = trial.context, study.settings
    judge: dict[str, Any] = {"name": settings["judge"], "identity": study.judge_id}
    if study.confirm_judge_id:
        judge["confirm"] = {"name": settings["confirm_judge"], "identity": study.confirm_judge_id}
    shared = {"note": SHARED_ERRORS} if study.judge_error else {}
    sampling = {key: settings[key] for key in SAMPLING_SETTINGS}
    card = {
        "card_version": CARD_VERSION,
        "text": context.text,
        "context_id": context.context_id,
        "placement": context.placement,
        "template": context.template,
        "params": dict(context.params),
        "axes": list(context.axes),
        "lineage": {"operator": context.operator, "parents": list(context.parents)},
        "study": study.name,
        "model": settings["model"],
        "model_id": study.model_id,
        "revision": study.revision,
        "backend": settings["backend"],
        "dtype": settings["dtype"],
        "prompts": {key: settings.get(key) for key in PROMPT_SETTINGS},
        "judge": judge | {"agreement_with_people": json_value(study.judge_error)} | shared,
        "sampling": sampling | {key: settings.get(key, 1) for key in ("samples", "unsafe_at")},
        "max_over_refusal": settings.get("max_over_refusal"),
        "over_refusal": settings.get("over_refusal"),
        "max_contraction": settings.get("max_contraction"),
        "count_flips": settings.get("count_flips"),
        "metrics": {"search": metrics(trial.search), "confirm": metrics(trial.confirm)},
        **{column.name: json_value(column.value(study, trial)) for column in columns_of(study, "card")},
        "second_judgements": json_value(trial.late.second_judgements),
        "depth": [{"num_tokens": num_tokens, "flip_rate": json_value(rate)} for num_tokens, rate in trial.late.depth],
        "portfolio": portfolio_metrics(study.portfolio) if study.portfolio else None,
        "benign_context": benign_metrics(study.benign) if study.benign else None,
        "search_tie_set": list(study.search_ties),
        "tie_set": [finalist.context.context_id for finalist in study.trials if finalist.ties_winner],
        "placebo": [
            _brief_card(placebo) | {"confirm": metrics(placebo.confirm)}
            for placebo in study.trials
            if placebo.role == "placebo"
        ],
        "base_unsafe_rate": json_value(study.base_unsafe),
        "base_over_refusal_rate": json_value(study.base_over_refusal),
        "base_endings": json_value(study.base_endings),
        "versions": dict(study.versions),
        "notes": list(study.notes),
    }
    return sealed(card)


def portfolio_card(study: Study, portfolio: Portfolio) -> dict[str, Any]:
    """Return best.portfolio.json: the cards of its contexts in routing order, and what they flip together."""
    card = {
        "card_version": CARD_VERSION,
        "study": study.name,
        "metrics": portfolio_metrics(portfolio),
        "contexts": [context_card(study, trial) for trial in study.trials_of(portfolio)],
    }
    return sealed(card)


def benign_card(study: Study, benign: BenignContext) -> dict[str, Any]:
    """Return best.benign.json: the card of the context for benign prompts; there must be one."""
    chosen = next(candidate for candidate in benign.candidates if candidate.context == benign.context)
    return sealed({**context_card(study, chosen), "role": chosen.role})


def metrics(measurement: Measurement | None) -> dict[str, Any] | None:
    """Return the rates of a measurement for JSON, or None if it was not made."""
    names = (
        *("flip_rate", "flip_rate_bounds", "tfr", "over_refusal_rate", "added_refusals", "transitions"),
        *("kinds_after", "contraction", "coverage", "unsafe_share", "endings"),
    )
    return {name: json_value(getattr(measurement, name)) for name in names} if measurement else None


def portfolio_metrics(portfolio: Portfolio) -> dict[str, Any]:
    """Return what the contexts of a portfolio flip together, beside the winner alone, for JSON."""
    return {
        "context_ids": list(portfolio.context_ids),
        "union_flip_rate": {"search": json_value(portfolio.search), "confirm": json_value(portfolio.confirm)},
        "winner_flip_rate": {"confirm": json_value(portfolio.winner)},
        "union_minus_winner": json_value(portfolio.gain),
        "note": ORACLE,
    }


def benign_metrics(benign: BenignContext) -> dict[str, Any]:
    """Return which context is for benign prompts, why, and both ways of misrouting, for JSON."""
    return {
        "context_id": benign.context.context_id if benign.context else None,
        "reason": benign.reason,
        "over_refusal_rate": json_value(benign.over_refusal_rate),
        "regression_rate": json_value(benign.regression_rate),
        "misrouted": {
            "harmful_under_benign_context_unsafe_rate": json_value(benign.misrouted_harmful_rate),
            "benign_under_winner_over_refusal_rate": json_value(benign.misrouted_benign_rate),
        },
        "candidates": [_brief_card(candidate) for candidate in benign.candidates],
    }


def _brief_card(trial: Trial) -> dict[str, Any]:
    """Return what a card holds of a placebo or a candidate for benign prompts."""
    context = trial.context
    return {
        "template": context.template,
        "text": context.text,
        "placement": context.placement,
        "search": metrics(trial.search),
    }


def study_folder(study: Path | str, reports: Path | None) -> Path:
    """Return the folder of a study, given as it is or by its name under `reports`; StudyError if there is none."""
    folder = Path(study)
    if not folder.is_dir():
        folder = (reports or StudyConfig().reports) / study
    if not folder.is_dir():
        places = (folder.parent, Path(study).parent)
        known = [path.parent.name for place in places for path in place.glob(f"*/{SETTINGS_FILE}")]
        raise StudyError(unknown_name("study", str(study), known))
    return folder.resolve() if folder.name in ("", ".", "..") else folder


def ledger_place(study: Path | str, reports: Path | None) -> Path | str:
    """Return where the ledger of a study lies; a ledger's own file or database URL is returned as it is."""
    if "://" in str(study) or Path(study).is_file():
        return study
    return study_folder(study, reports) / LEDGER_FILE
