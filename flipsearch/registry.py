"""Names to things: which models, contexts, judges and backends a name on the command line can mean.

Imports lazily, so that listing names loads no model library. Built-in names come first, then files, then entry points.
"""

from pathlib import Path

from flipsearch.errors import PluginError

PACKAGE = Path(__file__).parent
ORGANISM = "organism"
BUILT_IN_MODELS = {ORGANISM: "the pocket model: tiny, synthetic, ships with the package (no GPU, no download)"}


def content_folder(name: str) -> Path:
    """Return the folder contexts/ or judges/: inside an installed wheel, or beside the package in a checkout."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PluginError(f"the folder {name}/ is neither in nor beside {PACKAGE}; reinstall flipsearch.")


def model_source(model: str) -> str:
    """Return what a backend loads for `model`: the weights folder of a built-in model, or the name as it is."""
    return str(PACKAGE / "organism" / "weights") if model == ORGANISM else model
