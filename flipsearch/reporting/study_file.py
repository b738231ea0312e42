"""study.json.gz: a study with its prompts and contexts, its flips in columns: half a million take a few megabytes.

The fields of `Study` are JSON as they are, but for three. `winner` is the position of its trial. The flips of each
measurement are an entry of `flips`, in the order of the trials (search, confirm) and of the candidates for benign
prompts. `endings` are those that occur, which flips refer to.
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

from flipsearch.core.errors import StudyError, one_line
from flipsearch.core.files import atomic_write
from flipsearch.core.measurements import EndingCounts, Flip, Measurement
from flipsearch.core.records import AnswerKind, Label, Prompt
from flipsearch.core.studies import Study, Trial

STUDY = TypeAdapter(Study)
STUDY_FILE, UNFINISHED_FILE = "study.json.gz", "unfinished.json.gz"
CHECKPOINTS_FILE = "checkpoints.txt"
"""In a study's folder: where the checkpoints lie that were trained under its contexts, seen from there; one a line."""
SETTINGS_FILE = "study.toml"
"""The settings of a study, written when it begins."""
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
