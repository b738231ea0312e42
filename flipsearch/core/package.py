"""Where the package and its contents lie, and which versions of what it rests on are installed."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flipsearch.core.errors import PluginError

PACKAGE = Path(__file__).parents[1]
RESULT_PACKAGES = ("flipsearch", "optuna", "torch", "transformers", "vllm")
"""What a result can depend on; those that are not installed are left out."""


def content_folder(name: str) -> Path:
    """Return the folder contexts/ or judges/: inside an installed wheel, or beside the package in a checkout."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PluginError(f"the folder {name}/ is neither in nor beside {PACKAGE}; reinstall flipsearch.")


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
