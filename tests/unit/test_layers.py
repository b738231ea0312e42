"""The house keeps its layers: imports point downwards, and heavy packages stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flipsearch"
LAYERS: dict[str, int] = {
    "errors": 0, "records": 0, "draws": 0, "studies": 0, "scores": 0, "training_run": 0, "protocols": 0, "locks": 0,
    "config": 1, "registry": 1,
    "prompts": 2, "chat": 2, "ledger": 2, "events": 2,
    "templating": 3, "backends": 3, "statistics": 3,
    "judging": 4,  # a judge may be a model, and what it gets wrong is a statistic
    "organism": 5, "bench": 5,
    "measure": 6,
    "searching": 7, "training": 7, "evaluation": 7, "anatomy": 7,
    "reporting": 8, "testing": 8,
    "results": 9, "desk": 10, "judge_api": 11, "api": 12,
    "console": 13, "flags": 13, "commands": 14, "cli": 15, "__main__": 16,
}  # fmt: skip
ROOMS_OF_PACKAGE = {
    "torch": {"backends", "training", "organism", "anatomy"},
    "transformers": {"backends", "training", "organism", "anatomy"},
    "vllm": {"backends"},
    "optuna": {"searching"},
    "jinja2": {"templating", "reporting"},
}
LAZY = {"registry", "api", "commands", "cli", "__init__"}
"""Modules that may import inside functions, so that listing names or asking for help loads no model library."""
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, at_top: bool) -> list[str]:
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    return [name for node, name in found if (id(node) not in inside) == at_top]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here in LAZY:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree, at_top=True) + imports(tree, at_top=False):
        parts = name.split(".")
        if parts[0] != "flipsearch" or len(parts) == 1:
            continue
        there = parts[1]
        assert there in LAYERS, f"{name}: import from the module that defines it"
        assert (
            there == here
            or LAYERS[there] < LAYERS[here]
            or LAYERS[here] == LAYERS[there] == 0
            or (LAYERS[here] == LAYERS[there] == 1)
        ), f"{here} (layer {LAYERS[here]}) imports {there} (layer {LAYERS[there]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree, at_top=True) + imports(tree, at_top=False):
        package = name.split(".")[0]
        assert room(path) in ROOMS_OF_PACKAGE.get(package, {room(path)}), f"{path.name} imports {package}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_outer_skin_imports_lazily(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = [name for name in imports(tree, at_top=False) if name.split(".")[0] == "flipsearch"]
    assert room(path) in LAZY or not inside, f"{path.name} imports {inside} inside a function"


def test_only_the_outer_skin_imports_the_organism() -> None:
    users = [p for p in FILES if room(p) != "organism" and "flipsearch.organism" in p.read_text(encoding="utf-8")]
    assert {room(p) for p in users} <= {"cli"}


def test_every_room_has_a_layer() -> None:
    assert {room(p) for p in FILES} - {"__init__", "__main__"} <= set(LAYERS)
