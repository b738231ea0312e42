"""Holds a judge that is a plug-in to flipsearch.protocols.Judge: what it says of itself is looked at before use."""

import inspect
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from flipsearch.errors import PluginError
from flipsearch.judging.contract import faults
from flipsearch.records import Exchange, Verdict

_LONGEST = {"name": 100, "identity": 64}
"""Characters; the ledger has no room for a longer identity."""


class CheckedJudge:
    """The judge that a plug-in built; what it says of itself was looked at.

    `where` says in errors which one it is. Raises PluginError for what a judge must have and this one has not.
    """

    def __init__(self, judge: Any, where: str) -> None:
        self._judge, self._where = judge, where
        self.name = self._text("name")
        self.notes = self._texts("notes")
        self.memory_share = self._share("memory_share")
        if not hasattr(inspect.getattr_static(judge, "identity", None), "__get__"):
            self._text("identity")
        if not callable(method := self._at("judge")):
            raise self._fault("judge", method)
        self._close, self._was_fitted_to = self._method("close"), self._method("was_fitted_to")

    @cached_property
    def identity(self) -> str:
        """The judge's own. One that is computed is first asked for here: a guard downloads its model for it."""
        with faults(PluginError, f"judge in {self._where} cannot tell its identity"):
            return self._text("identity")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return whatever the judge gives; `ask` looks at it."""
        given: list[Verdict] = self._judge.judge(exchanges)
        return given

    def was_fitted_to(self, exchanges: Sequence[Exchange]) -> list[bool]:
        """Return which exchanges the judge was fitted to; one that does not tell was fitted to none."""
        if self._was_fitted_to is None:
            return [False] * len(exchanges)
        with faults(PluginError, f"judge '{self.name}' cannot tell what it was fitted to"):
            return [bool(one) for _, one in zip(exchanges, self._was_fitted_to(exchanges), strict=True)]

    def close(self) -> None:
        """Free the judge's model, if it has a method for that."""
        with faults(PluginError, f"judge '{self.name}' fails when it is closed"):
            if self._close is not None:
                self._close()

    def _at(self, name: str) -> Any:
        """What the judge has there, or None; a property that fails with AttributeError is not taken for nothing."""
        is_there = inspect.getattr_static(self._judge, name, None) is not None
        return getattr(self._judge, name) if is_there else getattr(self._judge, name, None)

    def _method(self, name: str) -> Any:
        value = self._at(name)
        if value is not None and not callable(value):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected a method.")
        return value

    def _text(self, name: str) -> str:
        value = self._at(name)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self._fault(name, value)
        if len(value) > _LONGEST[name]:
            raise PluginError(
                f"judge in {self._where}: its {name} has {len(value)} characters, expected at most {_LONGEST[name]}; "
                "shorten it (flipsearch.records.content_id makes an identity of anything)."
            )
        return value

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self._at(name)
        is_several = isinstance(value, Collection) and not isinstance(value, str)
        if value is not None and not (is_several and all(isinstance(one, str) for one in value)):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected several texts.")
        return tuple(value or ())

    def _share(self, name: str) -> float:
        value = self._at(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise PluginError(f"judge in {self._where}: {name} is {value!r:.80}, expected a number from 0 to 1.")
        return float(value or 0)

    def _fault(self, name: str, value: object) -> PluginError:
        return PluginError(
            f"judge in {self._where}: its {name} is {value!r:.80}; a judge needs name and identity (texts of one line) "
            "and judge(exchanges)."
        )
