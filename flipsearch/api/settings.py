"""Settings from keywords and a TOML file, checked and filled in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flipsearch.config import make_config, read_toml
from flipsearch.defaults import Checked, resolve


def checked(kind: type[Checked], file: Path | None, settings: Mapping[str, Any]) -> Checked:
    """Return the settings of a command, checked and with the defaults that go with the model."""
    return resolve(make_config(kind, settings_of(file), settings))


def settings_of(file: Path | None) -> dict[str, Any]:
    """Return the settings of a TOML file, none without one."""
    return read_toml(file) if file else {}
