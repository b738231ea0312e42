"""The house keeps its layers: imports point downwards, and heavy packages stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flipsearch"
LAYERS: dict[str, int] = {
    "core": 0,
    "config": 1,
    "ledger": 2, "prompts": 2, "templating": 2,
    "backends": 3, "statistics": 3,
    "judging": 4,  # a judge may be a model, and what it gets wrong is a statistic
    "measuring": 5, "settings": 5,
    "searching": 6, "training": 6, "evaluation": 6,
    "reporting": 7, "testing": 7,
    "results": 8,
    "workspace": 9,
    "api": 10,
    "commands": 11,
    "__main__": 12,
}  # fmt: skip
ROOMS_OF_PACKAGE = {
    "torch": {"backends", "training"},
    "transformers": {"backends", "training"},
    "vllm": {"backends"},
    "optuna": {"searching"},
    "jinja2": {"templating", "backends", "reporting"},
}
LAZY = {"commands", "__init__.py", "backends/base.py"}
"""What may import inside functions: the command line, so that help is quick, and the table of backends."""
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, at_top: bool) -> list[str]:
    result: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            result += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    return [name for node, name in result if (id(node) not in inside) == at_top]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree, at_top=True) + imports(tree, at_top=False):
        parts = name.split(".")
        if parts[0] != "flipsearch" or len(parts) == 1:
            continue
        there = parts[1]
        assert there in LAYERS, f"{name}: import from the module that defines it"
        assert there == here or LAYERS[there] < LAYERS[here], (
            f"{here} (layer {LAYERS[here]}) imports {there} (layer {LAYERS[there]})"
        )


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
    here = str(path.relative_to(PACKAGE))
    assert LAZY & {here, room(path)} or not inside, f"{path.name} imports {inside} inside a function"


def test_the_package_does_not_import_what_builds_the_pocket_model() -> None:
    assert not [
        path
        for path in FILES
        if any(
            name.startswith("pocket_model")
            for name in imports(ast.parse(path.read_text(encoding="utf-8")), at_top=True)
        )
    ]


def test_every_room_has_a_layer() -> None:
    assert {room(p) for p in FILES} - {"__init__"} == set(LAYERS)
