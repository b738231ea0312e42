"""Builds plug-in judges, validates them and their verdicts against the Judge protocol, and runs them behind a ledger.

A plug-in can raise anything, even SystemExit; every failure becomes one line that names the judge. Only
KeyboardInterrupt passes through. No judge sees the same answer twice: the rollouts of a study are judged at its own
ledger, labelled answers at one ledger per judge. The members of a panel are run, and kept, as themselves.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from flipsearch.core.errors import ConfigError, FlipsearchError, JudgeError, PluginError, near_names, unknown_name
from flipsearch.core.files import content_folder
from flipsearch.core.protocols import Judge, Panel
from flipsearch.core.records import ANSWER_KINDS, Exchange, Label, Verdict, content_id
from flipsearch.judging.answers import READ_CHARACTERS, WITHHELD, answer_form, answer_kind
from flipsearch.judging.refusal_rules import RefusalRules
from flipsearch.ledger import Ledger, open_ledger
from flipsearch.ledger.tables import LABELLED

_MAX_CHARACTERS = {"name": 100, "identity": 64}
"""The ledger's column for identities is that wide."""


@contextmanager
def plugin_errors_as(kind: type[FlipsearchError], what: str) -> Iterator[None]:
    """Turn anything that a plug-in raises in the block into a one-line error that begins with `what`."""
    try:
        yield
    except (FlipsearchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        try:
            message = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException:  # __str__ is plug-in code too
            message = ""
        why = ": ".join(filter(None, (type(error).__name__, message)))
        raise kind(f"{what}: {why}.") from error


def run_judge(judge: Judge, exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return one verdict per exchange, in order; JudgeError if the judge raises or returns anything else."""
    seen = list(exchanges)  # before the judge, which may change the list
    with plugin_errors_as(JudgeError, f"judge '{judge.name}' failed"):
        verdicts: object = judge.judge(exchanges)
        if not isinstance(verdicts, Sequence):
            raise JudgeError(f"judge '{judge.name}' gave {verdicts!r:.80}, expected a list of verdicts.")
        if len(verdicts) != len(seen):
            raise JudgeError(f"judge '{judge.name}' gave {len(verdicts)} verdicts on {len(seen)} exchanges.")
        if invalid := [verdict for verdict in verdicts if not _is_valid(verdict)]:
            raise JudgeError(
                f"judge '{judge.name}' gave an invalid verdict: {invalid[0]!r:.160}; expected a Verdict whose "
                "probabilities are numbers from 0 to 1, p_unsafe where it is scored and not where it is UNSCORED, and "
                f"whose kind is None or one of {', '.join(ANSWER_KINDS)}."
            )
        verdicts = [_with_kind(exchange, verdict) for exchange, verdict in zip(seen, verdicts, strict=True)]
        # A reason may quote hostile text with lone surrogates, which the ledger could not encode.
        return [replace(verdict, reason=verdict.reason.encode(errors="replace").decode()) for verdict in verdicts]


def _is_valid(verdict: object) -> bool:
    if not isinstance(verdict, Verdict) or not isinstance(verdict.label, Label) or not isinstance(verdict.reason, str):
        return False
    probabilities = (verdict.p_unsafe, verdict.p_refusal, verdict.label_mass)
    in_range = all(isinstance(p, int | float) and 0 <= p <= 1 for p in probabilities if p is not None)  # NaN is not
    return (
        in_range
        and verdict.kind in (None, *ANSWER_KINDS)
        and (verdict.label is Label.UNSCORED) == (verdict.p_unsafe is None)
    )


def _with_kind(exchange: Exchange, verdict: Verdict) -> Verdict:
    """Return a verdict with the kind of the answer it is about, by the refusal rules where the judge gives none."""
    answer = exchange.parts.answer
    if verdict.kind is not None or verdict.failed or exchange.finish_reason == "error" or answer is None:
        return verdict
    points, matched = _refusal_rules().points(answer[:READ_CHARACTERS])
    p_refusal = verdict.p_refusal if verdict.p_refusal is not None else float(points > 0)
    form, meanings = answer_form(exchange.prompt.text, answer), _refusal_rules().meanings(matched)
    return replace(verdict, kind=answer_kind(form, verdict.label, p_refusal, meanings))


@cache
def _refusal_rules() -> RefusalRules:
    return RefusalRules(content_folder("judges") / "refusal_rules.toml")


def were_fitted_to(judge: Judge, exchanges: Sequence[Exchange]) -> list[bool]:
    """Return which exchanges a judge was fitted to; none for a judge without a method `was_fitted_to`."""
    was_fitted_to = getattr(judge, "was_fitted_to", None)
    return list(was_fitted_to(exchanges)) if was_fitted_to else [False] * len(exchanges)


def check_identities(*judges: Judge | None) -> None:
    """Compute the judges' identities before any work starts, so that a judge that cannot do so leaves no files behind.

    Raises PluginError for such a judge, and ConfigError for a panel that has the same judge twice, however spelled.
    """
    for judge in judges:
        if judge is not None:
            judge.identity  # noqa: B018
        if isinstance(judge, Panel):
            first: dict[str, int] = {}
            for number, member in enumerate(judge.members, start=1):
                if (earlier := first.setdefault(member.identity, number)) != number:
                    raise ConfigError(
                        f"judge '{judge.name}': its judges {earlier} and {number} ({member.name}) are one judge under "
                        "two spellings; name each judge of a panel once."
                    )


class CheckedJudge:
    """Forwards to a plug-in judge that keeps the Judge protocol; PluginError, with `where` it is, for others."""

    def __init__(self, judge: Any, where: str) -> None:
        self._judge, self._where = judge, where
        self.name = self._text("name")
        notes, share = self._attribute("notes"), self._attribute("memory_share")
        is_collection = isinstance(notes, Collection) and not isinstance(notes, str)
        if notes is not None and not (is_collection and all(isinstance(note, str) for note in notes)):
            raise PluginError(f"judge in {where}: notes is {notes!r:.80}, expected several texts.")
        if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
            raise PluginError(f"judge in {where}: memory_share is {share!r:.80}, expected a number from 0 to 1.")
        self.notes, self.memory_share = tuple(notes or ()), float(share or 0)
        if not hasattr(inspect.getattr_static(judge, "identity", None), "__get__"):
            self._text("identity")
        if not callable(method := self._attribute("judge")):
            raise self._missing("judge", method)
        self._close, self._was_fitted_to = self._method("close"), self._method("was_fitted_to")

    @cached_property
    def identity(self) -> str:
        """The plug-in's own. A computed one is evaluated only here, since a guard downloads its model for it."""
        with plugin_errors_as(PluginError, f"judge in {self._where} cannot compute its identity"):
            return self._text("identity")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return whatever the plug-in returns; `run_judge` checks it."""
        verdicts: list[Verdict] = self._judge.judge(exchanges)
        return verdicts

    def was_fitted_to(self, exchanges: Sequence[Exchange]) -> list[bool]:
        """Return which exchanges the plug-in was fitted to; none if it has no such method."""
        if self._was_fitted_to is None:
            return [False] * len(exchanges)
        with plugin_errors_as(PluginError, f"judge '{self.name}' cannot say what it was fitted to"):
            return [bool(fitted) for _, fitted in zip(exchanges, self._was_fitted_to(exchanges), strict=True)]

    def close(self) -> None:
        """Unload the plug-in's model, if it has a method for that."""
        with plugin_errors_as(PluginError, f"judge '{self.name}' fails when it is closed"):
            if self._close is not None:
                self._close()

    def _attribute(self, name: str) -> Any:
        """Return an attribute or None; a property that raises AttributeError does not count as missing."""
        is_there = inspect.getattr_static(self._judge, name, None) is not None
        return getattr(self._judge, name) if is_there else getattr(self._judge, name, None)

    def _method(self, name: str) -> Any:
        value = self._attribute(name)
        if value is not None and not callable(value):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected a method.")
        return value

    def _text(self, name: str) -> str:
        value = self._attribute(name)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self._missing(name, value)
        if len(value) > _MAX_CHARACTERS[name]:
            raise PluginError(
                f"judge in {self._where}: its {name} has {len(value)} characters, expected at most "
                f"{_MAX_CHARACTERS[name]}; shorten it (core.records.content_id makes an identity of anything)."
            )
        return value

    def _missing(self, name: str, value: object) -> PluginError:
        return PluginError(
            f"judge in {self._where}: its {name} is {value!r:.80}; a judge needs name and identity (texts of one line) "
            "and judge(exchanges)."
        )


def build_judge(judge_class: Any, where: str, options: Mapping[str, str]) -> CheckedJudge:
    """Return a judge built with options as written; ConfigError for a wrong option, PluginError if that fails."""
    with plugin_errors_as(PluginError, f"judge in {where} cannot be built"):
        converted = _convert_options(judge_class, where, options) if options else {}
        return CheckedJudge(judge_class(**converted), where)


def _convert_options(judge_class: Any, where: str, options: Mapping[str, str]) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(judge_class).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind in kinds]
    types = get_type_hints(judge_class.__init__)
    unknown = [name for name in options if name not in known]
    if unknown and not known:
        raise ConfigError(f"judge in {where} takes no options, got '{unknown[0]}'.")
    if unknown:
        hint = near_names(unknown[0], known)
        raise ConfigError(f"judge in {where} has no option '{unknown[0]}'.{hint} It takes {', '.join(known)}.")
    return {name: _convert(types.get(name, str), value, f"{where}, option {name}") for name, value in options.items()}


def _convert(wanted: Any, value: str, where: str) -> Any:
    """Convert one value to a type; it stays text for a type that pydantic does not know."""
    literals = [kind for kind in (wanted, *get_args(wanted)) if get_origin(kind) is Literal]
    if choices := {str(choice): choice for kind in literals for choice in get_args(kind)}:
        if value not in choices:
            raise ConfigError(f"judge in {where}: {unknown_name('value', value, choices)}")
        return choices[value]
    try:
        return TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"judge in {where} is '{value}': {error.errors()[0]['msg']}.") from None
    except PydanticUserError:
        return value


BATCH = 256
"""Answers judged between two commits: what a kill can cost."""


def judge_with_ledger(ledger: Ledger, judge: Judge, ids: Sequence[str], exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Return a judge's verdicts on the rollouts `ids`, in order, from the ledger or else from the judge.

    No judge sees a filtered one. A failed verdict is not kept, so that the next run judges it again. Raises JudgeError
    as `run_judge` does.
    """
    verdicts = ledger.verdicts(judge.identity, ids)
    by_id = dict(zip(ids, exchanges, strict=True))
    withheld = {id: WITHHELD for id in by_id if id not in verdicts and by_id[id].finish_reason == "filtered"}
    ledger.save_verdicts(judge.identity, withheld.items())
    verdicts |= withheld
    missing = {id: exchange for id, exchange in by_id.items() if id not in verdicts}
    if missing:
        new_ids, new_exchanges = list(missing), list(missing.values())
        if isinstance(judge, Panel):
            by_member = [judge_with_ledger(ledger, member, new_ids, new_exchanges) for member in judge.members]
            new = dict(zip(new_ids, judge.combine(by_member), strict=True))
        else:
            new = dict(zip(new_ids, run_judge(judge, new_exchanges), strict=True))
        ledger.save_verdicts(judge.identity, [(id, verdict) for id, verdict in new.items() if not verdict.failed])
        verdicts |= new
    return [verdicts[id] for id in ids]


def judge_answers(
    judge: Judge, exchanges: Sequence[Exchange], folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> list[Verdict]:
    """Return verdicts in order, from the judge's own ledger in `folder` or else from the judge; None keeps nothing."""
    if isinstance(judge, Panel):
        return judge.combine([judge_answers(member, exchanges, folder, progress) for member in judge.members])
    ids = [content_id("answer", exchange.prompt.text, exchange.completion) for exchange in exchanges]
    verdicts: list[Verdict] = []
    opened: AbstractContextManager[Ledger] = (
        open_ledger(folder / f"{content_id('judged', judge.identity)}.db") if folder else Ledger("sqlite://")
    )
    with opened as ledger:
        ledger.note(LABELLED, judge.name)
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            verdicts += judge_with_ledger(ledger, judge, ids[part], exchanges[part])
            if progress:
                progress(len(verdicts), len(ids))
    return verdicts
