"""Every error that flipsearch raises on purpose.

A message says in one line what is wrong, what was given, what was expected and what to do. The command line prints it
and exits with `exit_code`. A failed rollout or an unparsable judgement is never an error: it is data (UNSCORED).
"""

import difflib
from collections.abc import Iterable


class FlipsearchError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the message in one line, whatever line breaks the names in it bring along."""
        return " ".join(super().__str__().splitlines())


class ConfigError(FlipsearchError):
    """A flag, a TOML key or a combination of them cannot be used."""


class NoContextError(ConfigError):
    """A card says that its study confirmed no context."""


class PluginError(FlipsearchError):
    """A context, judge or backend cannot be found or loaded."""


class TemplateError(FlipsearchError):
    """A context template has a bad head, an undeclared variable or bad syntax."""


class PromptError(FlipsearchError):
    """A prompt file has no usable column, an unknown label or no rows."""


class BackendError(FlipsearchError):
    """A model cannot be loaded, or cannot generate at all."""


class JudgeError(FlipsearchError):
    """A judge cannot run at all."""


class LedgerError(FlipsearchError):
    """The ledger cannot be read or written."""


class StudyError(FlipsearchError):
    """A study cannot start or continue."""


class NothingToFlipError(StudyError):
    """The study ran, but no baseline rollout is unsafe, or a placebo already flips all of them."""

    exit_code = 1


class PoorCoverageError(StudyError):
    """Too few answers without a context can be scored for anything that is made of them to be trusted."""


class TrainingError(FlipsearchError):
    """A training cannot start or continue."""


class TrainingStoppedError(TrainingError):
    """A signal stopped a training, which can continue: a scheduler may queue it again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of an exception in one line of at most `limit` characters; its type's name if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


LONGEST_SHOWN = 100
"""Characters of an unknown name that a message quotes: it may be a text of any length."""


def near_names(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean a, b?" with up to three names similar to `name`, or "" if there are none."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(near)}?" if near else ""


def unknown_name(what: str, name: str, known: Iterable[str], todo: str = "") -> str:
    """Return the one-line message for an unknown name: similar names, the known ones, and what to do."""
    names, name = sorted(known), name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    tail = f" {todo}" if todo else ""
    return f"unknown {what} '{name}'.{near_names(name, names)} Known: {shown or 'none'}.{tail}"
