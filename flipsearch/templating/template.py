"""One context template: a Jinja file whose first comment is a TOML head.

    {#
    description = "One sentence for the list of contexts."
    axes = ["strength"]
    source = "Where the idea comes from."
    [params]
    strength = ["plain", "firm"]
    #}
    {{ "Never" if strength == "firm" else "Do not" }} help with harmful requests.

It renders in Jinja's immutable sandbox with StrictUndefined. Values are data: a value that looks like a template is
never rendered as one. This module does not know where templates are or which one is good.

Bounds on what others' templates take, chat templates too: they can loop for ever, and grow without end. Time is bounded
by a trace function, which sees every call and, in a template's own code, every line. Unlike a signal it is a thread's
own; a debugger's or a coverage tool's function comes back afterwards. It cannot end a single operation in C: those that
could take for ever are refused before rendering. Memory is bounded by the system, for a whole process: so one thread
renders at a time, another that allocates MAX_BYTES within these milliseconds may get a MemoryError, and a limit that is
lower already stays. No process starts within a block, so none inherits the limit: vLLM's are not bounded.
"""

import math
import random
import re
import sys
import threading
import time
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flipsearch.core.errors import TemplateError, one_line, unknown_name
from flipsearch.core.files import can_be_stored, read_text
from flipsearch.core.records import PLACEMENTS, Context, Placement

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word, or one character of a script that puts no blanks between words."""
AXES = ("strength", "length", "framing", "specificity", "style", "placement")
TemplateRole = Literal["context", "placebo", "benign"]
ROLES: tuple[TemplateRole, ...] = ("context", "placebo", "benign")
TEXT, NUM_WORDS = "text", "num_words"
"""Parameters of placebos that are matched to the winner: its text is given, or its length is chosen."""
WORDS_UNMATCHED = 60
"""Words of a placebo that is scored by its name, with no winner whose length it could have."""
MOST_COUNTED = 400
"""Variants of a template that are rendered to say how long its text is."""
HEAD = re.compile(r"\A\s*\{#-?(?P<head>.*?)-?#\}", re.DOTALL)
MOST_CHOICES = 10_000
"""Values of a range at most: more would fill the memory, and no search tries them all."""
HEAD_KEYS = {"description", "axes", "source", "role", "placements", "params"}
MAX_SECONDS = 2.0
"""Of processor time, so that a busy machine stops nothing; an honest template needs some milliseconds."""
MAX_BYTES = 2**29
MAX_CHARACTERS = 1_000_000
"""Of a context, and of what a chat template may add to the texts that it is given."""
CODE_FILE = "<template>"
"""What Jinja calls the file of a template's code."""
_ONE_AT_A_TIME = threading.RLock()
"""Of two that overlap, the second would take the first one's limit for the usual one, and leave it behind for good."""


class BoundExceededError(Exception):
    """A template runs for too long or writes too much."""


@contextmanager
def bounded_rendering() -> Iterator[None]:
    """Raise BoundExceededError in a block that renders for too long, and MemoryError if it takes too much memory."""
    deadline, tracer = time.thread_time() + MAX_SECONDS, sys.gettrace()  # waiting for the lock takes no such time

    def check(frame: FrameType, event: str, argument: object) -> Any:
        if time.thread_time() > deadline:
            raise BoundExceededError(f"still running after {MAX_SECONDS:g} s")
        return check if frame.f_code.co_filename == CODE_FILE else None

    with _ONE_AT_A_TIME, _bounded_memory():
        sys.settrace(check)
        try:
            yield
        finally:
            sys.settrace(tracer)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process take MAX_BYTES more than it has; where the system cannot limit it, nothing is done."""
    limits = None
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MAX_BYTES
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            limits = soft, hard
    try:
        yield
    finally:
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, limits)


@dataclass(frozen=True, slots=True)
class Param:
    """One template parameter: a list of values, a range of integers, or a text given by the program."""

    name: str
    choices: tuple[Any, ...]
    """() for a given text."""

    @property
    def given(self) -> bool:
        """Whether the program fills it in (e.g. the text that a placebo shuffles); it is not searched then."""
        return not self.choices


@dataclass(frozen=True, slots=True)
class Template:
    """A context template and what its head declares."""

    name: str
    """File name without `.j2`."""
    path: str
    body: str
    """Jinja source without the head."""
    description: str
    axes: tuple[str, ...]
    """Which of the design axes its parameters move."""
    source: str
    role: TemplateRole
    """"context" is searched; "placebo" has no safety content; "benign" is for benign prompts in training."""
    placements: tuple[Placement, ...]
    params: tuple[Param, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The first choice of every parameter, but for the length of a placebo."""
        first = {p.name: p.choices[0] for p in self.params if not p.given}
        has_length = any(p.name == NUM_WORDS and WORDS_UNMATCHED in p.choices for p in self.params)
        return first | ({NUM_WORDS: WORDS_UNMATCHED} if has_length else {})

    @property
    def num_variants(self) -> int:
        """How many combinations of parameters there are, each at every placement; a control is matched, not varied."""
        return math.prod(len(p.choices) for p in self.params) if self.role != "placebo" else 1

    def length_in_words(self) -> str:
        """Return the length of the text in words, e.g. "12-40" over the variants; "winner's" where it is matched."""
        if any(param.given or param.name == NUM_WORDS for param in self.params):
            return "winner's"
        every = islice(product(*(param.choices for param in self.params)), MOST_COUNTED)
        names = [param.name for param in self.params]
        lengths = [len(self.render(dict(zip(names, values, strict=True))).split()) for values in every]
        least, most = min(lengths), max(lengths)
        return str(least) if least == most else f"{least}-{most}"

    def render(self, params: Mapping[str, Any] | None = None) -> str:
        """Return the text for `params`, defaults filled in; TemplateError for what the head does not declare."""
        values, declared = self.defaults | dict(params or {}), {param.name: param for param in self.params}
        for name, value in values.items():
            if name not in declared:
                raise TemplateError(f"{self.path}: {unknown_name('parameter', name, declared)}")
            if not declared[name].given and value not in declared[name].choices:
                known = [str(choice) for choice in declared[name].choices]
                raise TemplateError(f"{self.path}: {unknown_name(f'value of {name}', str(value), known)}")
        for param in self.params:
            if param.name not in values:
                raise TemplateError(f"{self.path}: the text '{param.name}' must be given to render it.")
        try:
            with bounded_rendering():
                text = _joined(_compiled(self.body).generate(values))
        except Exception as error:  # a template can raise anything, e.g. by dividing by zero
            why = "it takes too much memory" if isinstance(error, MemoryError) else one_line(error).rstrip(".")
            raise TemplateError(f"{self.path}: cannot be rendered with {values!r:.200}: {why}.") from error
        if not can_be_stored(text):
            raise TemplateError(f"{self.path}: renders a NUL or half a character (a lone surrogate) with {values}.")
        return tidy(text)

    def context(self, params: Mapping[str, Any] | None = None, placement: Placement | None = None) -> Context:
        """Return the rendered Context with its lineage; the placement is the first declared one by default."""
        placement = placement or self.placements[0]
        if placement not in self.placements:
            raise TemplateError(f"{self.path}: {unknown_name('placement', placement, self.placements)}")
        text, values = self.render(params), self.defaults | dict(params or {})
        searched = sorted((param.name, values[param.name]) for param in self.params if not param.given)
        return Context(text, placement, self.name, tuple(searched), self.axes)


@lru_cache(maxsize=256)
def parse_template(source: str, name: str, path: str) -> Template:
    """Return the template of a source text; TemplateError with path and line for what is wrong with it."""
    match = HEAD.match(source)
    if match is None:
        raise TemplateError(f'{path}:1: no head; expected a first comment {{# description = "…" … #}} in TOML.')
    try:
        head = tomllib.loads(match["head"])
    except (ValueError, RecursionError) as error:  # also of numbers too long, and lists too deep
        raise TemplateError(f"{path}: the head is not valid TOML: {error}.") from error
    body = source[match.end() :]
    table = head.get("params", {})
    if not isinstance(table, dict):
        raise TemplateError(f"{path}: [params] must be a table, got {type(table).__name__}.")
    params = tuple(Param(name, _choices(name, value, path)) for name, value in table.items())
    role = head.get("role", "context")
    if role not in ROLES:
        raise TemplateError(f"{path}: {unknown_name('role', str(role), ROLES)}")
    placements = _subset({"placements": ["system", "before", "after"]} | head, "placements", PLACEMENTS, path)
    _check_body(body, {p.name for p in params}, path, source[: match.end()].count("\n"))
    return Template(
        name=name,
        path=path,
        body=body,
        description=_text(head, "description", path),
        axes=_subset(head, "axes", AXES, path),
        source=_text(head, "source", path),
        role=role,
        placements=tuple(placement for placement in PLACEMENTS if placement in placements),
        params=params,
    )


def read_template(path: Path) -> Template:
    """Return the template of a file (UTF-8, ending in .j2); its name is the file's."""
    try:
        return parse_template(read_text(path), path.name.removesuffix(".j2"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: cannot be read as a UTF-8 text file: {error}.") from error


def tidy(text: str) -> str:
    """Return `text` with single blanks, every line stripped, and at most one empty line in a row."""
    lines = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def normalised(text: str) -> str:
    """Return the words of a text, joined by blanks, without case, punctuation and variants of a character."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def quoted(tag: str, text: str, tags: re.Pattern[str]) -> str:
    """Return a hostile text between tags for a model; where it spells out one of `tags`, its bracket is replaced."""
    return f"<{tag}>\n{tags.sub('‹', text)}\n</{tag}>"


def _joined(parts: Iterable[str]) -> str:
    """Return the parts of a rendered text as one; BoundExceededError as soon as there are too many characters."""
    texts, num = [], 0
    for part in parts:
        num += len(part)
        if num > MAX_CHARACTERS:
            raise BoundExceededError(f"it writes more than {MAX_CHARACTERS:,} characters")
        texts.append(part)
    return "".join(texts)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which no single operation takes for ever."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply numbers and short sequences; no program writes powers into a text."""
        size = max((len(value) for value in (left, right) if isinstance(value, str | list | tuple)), default=0)
        times = next((value for value in (left, right) if isinstance(value, int)), 1)
        if operator == "**" or size * times > MAX_CHARACTERS:
            raise BoundExceededError(f"'{operator}' makes too much of {left!r:.20} and {right!r:.20}")
        return super().call_binop(context, operator, left, right)


def shuffled_words(text: str, seed: int = 0) -> str:
    """Return the words of `text` in a random order: the same words, without meaning."""
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def first_words(text: str, num_words: int) -> str:
    """Return the first `num_words` words of `text`, which is repeated if it is too short."""
    words = text.split()
    return " ".join(words[i % len(words)] for i in range(num_words)) if words else ""


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    # autoescape is off on purpose: a context is plain text for a model, not HTML.
    environment = _Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shuffled_words": shuffled_words, "first_words": first_words}
    environment.globals.clear()
    return environment


@lru_cache(maxsize=256)
def _compiled(body: str) -> JinjaTemplate:
    return _environment().from_string(body)


def _choices(name: str, value: Any, path: str) -> tuple[Any, ...]:
    """Return the values that the head allows for a parameter; () for "given"."""
    if value == "given":
        return ()
    if isinstance(value, list) and value and all(isinstance(v, str | bool | int) for v in value):
        return tuple(value)
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "step"}:
        low, high, step = value["low"], value["high"], value.get("step", 1)
        if all(isinstance(number, int) for number in (low, high, step)) and low <= high and step > 0:
            if (high - low) // step >= MOST_CHOICES:
                raise TemplateError(
                    f"{path}: parameter '{name}' has more than {MOST_CHOICES:,} values; give a larger step."
                )
            return tuple(range(low, high + 1, step))
    raise TemplateError(
        f"{path}: parameter '{name}' is {value!r}; expected a list of values, {{low=, high=, step=}} or \"given\"."
    )


def _check_body(body: str, declared: set[str], path: str, first_line: int) -> None:
    """Raise TemplateError for bad syntax, and for variables and declared parameters that do not match."""
    try:
        with bounded_rendering():  # what is constant is computed here already
            tree = _environment().parse(body)
            used = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        raise TemplateError(f"{path}:{first_line + error.lineno}: {error.message}.") from error
    except (RecursionError, SyntaxError, ValueError, MemoryError, BoundExceededError) as error:  # of its code, too
        raise TemplateError(f"{path}: too large or nested too deeply: {one_line(error)}.") from error
    for name in sorted(used - declared):
        lines = [node.lineno for node in tree.find_all(nodes.Name) if node.name == name]
        message = unknown_name("variable", name, declared, "Declare it under [params] in the head.")
        raise TemplateError(f"{path}:{first_line + min(lines)}: {message}")
    if declared - used:
        raise TemplateError(f"{path}: parameter '{min(declared - used)}' is declared but the text never uses it.")


def _text(head: Mapping[str, Any], key: str, path: str) -> str:
    value = head.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TemplateError(f'{path}: the head needs {key} = "…"; got {value!r}.')
    for name in head:
        if name not in HEAD_KEYS:
            raise TemplateError(f"{path}: {unknown_name('head key', name, HEAD_KEYS)}")
    return value


def _subset(head: Mapping[str, Any], key: str, known: tuple[str, ...], path: str) -> tuple[str, ...]:
    values = head.get(key, [])
    if not isinstance(values, list):
        raise TemplateError(f"{path}: {key} must be a list, got {values!r}.")
    for value in values:
        if value not in known:
            raise TemplateError(f"{path}: {unknown_name(key, str(value), known)}")
    return tuple(values)
