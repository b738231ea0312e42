"""What a judge needs to run, read from its file as text: a model, packages, a file; and whether they are here."""

import ast
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache


@dataclass(frozen=True, slots=True)
class Needs:
    """What the literals `needs_model`, `needs_packages`, `needs_checkpoint` and `needs_option` of a class say."""

    model: str = ""
    """Hub id of the model that it takes if none is given; "" if it needs none."""
    packages: tuple[str, ...] = ()
    """Names to import."""
    checkpoint: str = ""
    """File in torch's folder of checkpoints that it takes if none is given."""
    option: str = ""
    """An option that must be given."""

    def told(self) -> str:
        """Return in a bracket what is needed, and whether it is here; "" if nothing is."""
        missing = [package for package in self.packages if not _is_installed(package)]
        parts = [f"not installed: pip install {' '.join(missing)}"] if missing else []
        if self.model:
            is_here = _is_downloaded(self.model)
            parts.append(f"needs {self.model}: {'here' if is_here else 'not downloaded yet'}, or model=PATH")
        if self.checkpoint:
            is_here = (_torch_home() / "hub" / "checkpoints" / self.checkpoint).is_file()
            parts.append(f"needs {self.checkpoint}: {'here' if is_here else 'not downloaded yet'}, or checkpoint=PATH")
        if self.option:
            parts.append(f"needs {self.option}=…")
        return f"[{'; '.join(parts)}]" if parts else ""


def needs_of(syntax: ast.ClassDef) -> Needs:
    """Return what a class says that it needs."""
    told = {target: value for node in syntax.body for target, value in _literals(node)}
    packages = told.get("needs_packages", ())
    names = tuple(map(str, packages)) if isinstance(packages, tuple) else ()
    model, checkpoint, option = (str(told.get(f"needs_{name}") or "") for name in ("model", "checkpoint", "option"))
    return Needs(model, names, checkpoint, option)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # what it is a part of is not there, or it is no name
        return False


def _is_downloaded(model: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:  # no hub id
        return False


def _torch_home() -> Path:
    """Where torch keeps downloads, by its own rule; asking it would import it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser()


def _literals(node: ast.stmt) -> list[tuple[str, Any]]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(value, ast.Constant | ast.Tuple):
        return []
    try:
        return [(target.id, ast.literal_eval(value)) for target in targets if isinstance(target, ast.Name)]
    except ValueError:
        return []
