"""Where the package and its contents are, and which versions of its dependencies are installed."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flipsearch.core.errors import PluginError

PACKAGE = Path(__file__).parents[1]
RESULT_PACKAGES = ("flipsearch", "optuna", "torch", "transformers", "vllm")
"""The packages that a result can depend on."""


def content_folder(name: str) -> Path:
    """Return the folder contexts/ or judges/: inside an installed wheel, or beside the package in a checkout."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PluginError(f"the folder {name}/ is neither in nor beside {PACKAGE}; reinstall flipsearch.")


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version for those of `packages` that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
