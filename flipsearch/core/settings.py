"""How a setting is described, checked and written down, and the settings of a model, which most commands share.

config/ says which other settings there are.
"""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flipsearch.core.errors import ConfigError, one_line, unknown_name
from flipsearch.core.files import can_be_stored, read_text
from flipsearch.core.records import FLIP_KINDS, AnswerKind, Sampling, content_id

Quantize = Literal["4bit", "8bit"]
"""In how many bits the weights of linear layers are kept."""
LONGEST_NAME = 200
"""Bytes in a file's name that the user chooses: file systems take 255, and what is added to it needs some."""
UNITS = {"s": 1, "m": 60, "h": 3600}
MAX_TOKENS = 1024
"""Completion tokens at most where neither the user nor the model says otherwise."""
THOUGHT_SHARE = 2
"""A model that thinks has this part of max_tokens for its thought where the user gives no budget: else hardly an answer
begins; a thought that is cut at less than a seventh of its natural length continues in the answer."""
REWRITE_TOKENS = 2048
"""Tokens at most of a reply that holds a rewritten context: a model may think before it writes."""
REQUEST_TIMEOUT_S = 900.0
"""Seconds of one request to an endpoint where the user does not say otherwise."""
MOST_SAMPLES = 1000
"""Samples per prompt at most."""
Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Flag:
    """How a setting is written on the command line."""

    names: tuple[str, ...] = ()
    """All spellings, the usual one first; () is the field's name with dashes."""
    metavar: str | None = None
    is_argument: bool = False
    is_text: bool = False
    """It may be written otherwise than its type, e.g. 15m."""


def seconds(value: Any) -> Any:
    """Return the seconds that a number or a text such as "90s", "15m", "2h" means; None for None; else ValueError."""
    if value is None:
        return None
    if isinstance(value, str) and value[-1:] in UNITS:
        with suppress(ValueError):
            return float(value[:-1]) * UNITS[value[-1:]]
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)
    raise ValueError("expected seconds, or a time such as 90s, 15m or 2h")


def as_sequence(value: Any) -> Any:
    """Return a single text or number as a sequence of one: `context="best.txt"` is what most people write."""
    return (value,) if isinstance(value, str | int) else value


def flip_kinds(value: Any) -> Any:
    """Return kinds of answers, given one by one or with commas between them, in the order of FLIP_KINDS."""
    parts = as_sequence(value)
    if not isinstance(parts, list | tuple | set | frozenset):
        raise ValueError(f"expected kinds of answers, of {', '.join(FLIP_KINDS)}")
    names = [name.strip() for part in parts for name in str(part).split(",")]
    for name in names:
        if name not in FLIP_KINDS:
            raise ConfigError(f"--count-flips: {unknown_name('kind of answer', name, FLIP_KINDS)}")
    return tuple(kind for kind in FLIP_KINDS if kind in names)


def separated(value: Any) -> Any:
    """Return values, given one by one or with commas between them, as texts, each once."""
    parts = (value,) if isinstance(value, float) else as_sequence(value)
    if not isinstance(parts, list | tuple):
        raise ValueError("expected values with commas between them")
    return tuple(dict.fromkeys(text.strip() for part in parts for text in str(part).split(",")))


Texts = Annotated[tuple[str, ...], BeforeValidator(as_sequence)]
Names = Annotated[tuple[str, ...], BeforeValidator(separated), Flag(metavar="NAME,…")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(separated), Flag(metavar="SHARE,…", is_text=True)
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[Positive, BeforeValidator(seconds)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**12)]
"""No work has more of anything, and a larger number overflows somewhere."""


PROMPT_FILES = Flag(metavar="PATH[:COLUMN]")
TIME = Flag(("--time",), "SECONDS|90s|15m|2h", is_text=True)
FlipKinds = Annotated[tuple[AnswerKind, ...], BeforeValidator(flip_kinds), Field(min_length=1), Flag(metavar="KIND,…")]
Depths = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_sequence), Flag(("--depth",), metavar="TOKENS")
]


def is_endpoint(model: str) -> bool:
    """Return whether a model is behind an endpoint: it is then called over HTTP, whatever else the settings say."""
    return model.startswith(("http://", "https://"))


class ModelConfig(BaseModel):
    """Which model answers which prompts, how, and who judges: shared by every command that generates."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = "pocket"
    """Built-in name (pocket, smollm2), folder, FILE.gguf, hub id org/name[@revision] or http(s)://HOST/v1#NAME."""
    backend: str = "transformers"
    """transformers, vllm, http, scripted or one that is installed; see `flipsearch list backends`."""
    thinking: Literal["auto", "on", "off"] = "auto"
    """The chat template's thinking switch, by whichever name it has: auto, on or off."""
    think_tokens: Annotated[int, Field(ge=0)] | None = None
    """Close a thought after N tokens; max_tokens is then the answer's own (half of it; 0: one limit for both)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights: auto, float32, bfloat16 or float16."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """vLLM's longest sequence in tokens (max_tokens and 3,072 more, or what the model holds if that is less)."""
    batch_size: Count | None = None
    """Rows per batch; halved automatically where memory is short (the backend chooses)."""
    max_tokens: Count | None = None
    """Completion tokens at most, without those of a thought that has a budget (pocket 160, others 1,024)."""
    temperature: NonNegative = 0.0
    """Randomness of the answers; 0 always takes the likeliest token (greedy)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a temperature: sample from the likeliest tokens that together have this probability (nucleus)."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """With a temperature: sample from the N likeliest tokens; 0: from all."""
    prompts: str | None = None
    """Built-in or public prompt set or file with labels (the model's own; see `flipsearch list prompts`)."""
    harmful: Annotated[Texts, PROMPT_FILES] = ()
    """File, https address, hub dataset ORG/NAME/CONFIG/SPLIT or public set of harmful prompts; repeatable."""
    benign: Annotated[Texts, PROMPT_FILES] = ()
    """The same of benign prompts; repeatable."""
    judge: str = ""
    """A judge J(option=value), or a panel J+J:any (:all, :majority, :mean) (compact; pocket: refusal)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of sampling, and of a search or a training."""
    contexts: Annotated[Texts, Flag(metavar="PATH")] = ()
    """More context templates: a .j2 file or a folder; repeatable."""
    max_prompts: Annotated[int, Field(ge=2)] | None = None
    """Prompts at most of each kind, per split in a search (all)."""
    omit: Annotated[Texts, Flag(metavar="PARAMETER")] = ()
    """Do not send this to the endpoint, e.g. temperature or max_tokens; repeatable (what it refuses when probed)."""
    request_timeout_s: Annotated[Seconds, Flag(("--request-timeout",), TIME.metavar, is_text=True)] = REQUEST_TIMEOUT_S
    """Time that a request to an endpoint may take, with all retries and pauses."""

    def sampling(self, thinks: bool = False) -> Sampling:
        """Return how completions are sampled; a model that `thinks` has a budget for it if none was given."""
        max_tokens = self.max_tokens or MAX_TOKENS
        usual = max_tokens // THOUGHT_SHARE if thinks else 0
        budget = usual if self.think_tokens is None else self.think_tokens
        return Sampling(max_tokens, self.temperature, self.top_p, self.top_k, self.seed, budget)

    @property
    def short_name(self) -> str:
        """Name of the model in the names of folders."""
        return Path(self.model).name.rpartition("#")[2].split("@")[0].lower()

    def longest_completion(self) -> int:
        """Return the most tokens that a model with these settings may have to write."""
        return self.sampling().longest

    def for_model(self, model: str) -> Self:
        """Return the settings that load another model: behind an endpoint, that decides how."""
        other: dict[str, Any] = {"model": model, "omit": ()}
        if is_endpoint(model):
            other |= {"backend": "http", "thinking": "auto", "think_tokens": None, "device": "auto", "dtype": "auto"}
        elif model.endswith(".json") or self.backend in ("http", "scripted"):
            other |= {"backend": "scripted" if model.endswith(".json") else "transformers", "think_tokens": None}
        return self.model_copy(update=other)

    @staticmethod
    def changeable_fields() -> set[str]:
        """Return the settings that change no result: they may differ when a command is continued."""
        return {"reports", "batch_size", "device", "max_model_len", "request_timeout_s"}

    def identity(self, *more: object) -> str:
        """Return a hash of the settings that change results, and of `more`."""
        return content_id(self.model_dump(mode="json", exclude=self.changeable_fields()), *more)


def check_folder_name(flag: str, name: str, place: str, taken: Sequence[str] = ()) -> None:
    """Raise ConfigError for a text that cannot be the name of a folder; the setting `place` says where it goes.

    Folders that are `taken`, and those that begin with "_" beside them, hold something else.
    """
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and name.strip(". ") != ""
    if not is_plain or len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"{flag} is {name[:60]!r}: expected the name of a folder, no path; {place} says where.")
    if taken and (name.startswith("_") or name in taken):
        raise ConfigError(
            f"{flag} is '{name}', expected a name that does not begin with '_' and is none of {', '.join(taken)}: "
            "these folders hold something else."
        )


def flag_of(kind: type[BaseModel], name: str) -> Flag:
    """Return how a setting is written on the command line."""
    given = next((item for item in kind.model_fields[name].metadata if isinstance(item, Flag)), Flag())
    return given if given.names else replace(given, names=(f"--{name.replace('_', '-')}",))


def as_typed(kind: type[BaseModel], name: str, value: Any, longest: int | None = 80) -> str:
    """Return a setting as it is typed, each value in at most `longest` characters; "no --flag" without a value.

    A name that is no setting of this version is returned as it is.
    """
    if name not in kind.model_fields:
        return f"{name} {value!s:.80}"
    flag, field = flag_of(kind, name).names[0], kind.model_fields[name]
    if isinstance(value, bool):
        shown = f"--no-{flag.removeprefix('--')}" if field.default else f"no {flag}"
        return flag if value else shown
    items = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
    takes_commas = (flag_of(kind, name).metavar or "").endswith(",…")
    typed = [shlex.quote(item) for item in ([",".join(items)] if takes_commas else items)]
    return f"no {flag}" if value in (None, (), []) else " ".join(f"{flag} {text[:longest]}" for text in typed)


def typed_path(path: object) -> str:
    """Return the path of a file or folder as an argument of a shell; one that begins with a dash is no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_line(command: str, kind: type[BaseModel], settings: Mapping[str, Any]) -> str:
    """Return a command with the `settings` that it has and that differ from its defaults, untruncated, to be copied."""
    fields = kind.model_fields
    # A file of settings holds lists for tuples, and texts for paths.
    typed = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in fields
    }
    own = {key: value for key, value in typed.items() if str(value) != str(fields[key].default)}
    given = {key: value for key, value in own.items() if value not in (None, ())}
    arguments = [typed_path(given.pop(key)) for key in list(given) if flag_of(kind, key).is_argument]
    return " ".join([command, *arguments, *(as_typed(kind, key, value, None) for key, value in given.items())])


def value_type(kind: type[BaseModel], name: str) -> tuple[type, bool]:
    """Return bool, int, float, Path or, for what is written as text, str; and whether the setting holds several."""
    annotation: Any = kind.model_fields[name].annotation
    is_sequence = False
    while arguments := [part for part in get_args(annotation) if part is not type(None)]:
        is_sequence = is_sequence or get_origin(annotation) is tuple
        annotation = arguments[0] if get_origin(annotation) is not Literal else str
    return (str if flag_of(kind, name).is_text else annotation), is_sequence


def make_config(kind: type[Settings], *sources: Mapping[str, Any]) -> Settings:
    """Return a config from names or flags to values, later ones winning, None left out; ConfigError in one line."""
    flags = ((flag, name) for name in kind.model_fields for flag in flag_of(kind, name).names)
    written = {flag.lstrip("-").replace("-", "_"): name for flag, name in flags}
    merged: dict[str, Any] = {}
    for key, value in ((key, value) for source in sources for key, value in source.items() if value is not None):
        name = key if key in kind.model_fields else written.get(key.replace("-", "_"), key)
        if isinstance(value, dict):
            raise ConfigError(f"[{key}] is a section; settings are given without any.")
        if name not in kind.model_fields:
            raise ConfigError(unknown_name("setting", key, kind.model_fields))
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str | Path) and not can_be_stored(str(text)):
                flag = flag_of(kind, name).names[0]
                raise ConfigError(f"{flag} is {str(text)!r:.80}: NUL and half a character can be in no text here.")
        merged[name] = value
    try:
        return kind(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name, given = str(first["loc"][0]), f"{first['input']!r:.80}"
        if first["type"] == "missing":
            raise ConfigError(f"{flag_of(kind, name).names[0]} is missing.") from error
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        expected = expected.partition(", unable to parse")[0]
        raise ConfigError(f"{flag_of(kind, name).names[0]} is {given}: {expected}.") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a settings file; raises ConfigError with its name if it cannot be read."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file '{path}'.") from error
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no TOML, a number of 5,000 digits, deep nesting
        raise ConfigError(f"{path}: cannot be read as TOML: {one_line(error)}.") from error


def toml_text(config: BaseModel) -> str:
    """Return the settings as TOML that `--config` reads back; settings without a value are left out."""
    values = config.model_dump(mode="json", exclude_none=True)
    # JSON's strings, numbers, booleans and flat lists are TOML's, but for escaped surrogates and a bare DEL.
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f")
