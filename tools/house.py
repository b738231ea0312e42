"""Prints the size and shape of the package: modules, lines, functions, imports, and what a small search runs.

python tools/house.py            the figures that a parse gives
python tools/house.py --run      and what is imported and run: `flipsearch --help`, a search of 8 contexts on 8 prompts
"""

import argparse
import ast
import collections
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flipsearch"
TRACE = """
import sys
from flipsearch.api import studies
from flipsearch.commands import main
seen = set()
def profile(frame, event, arg):
    code, name = frame.f_code, frame.f_code.co_filename
    if event == "call" and "/flipsearch/" in name and name.endswith(".py") and code.co_flags & 1:  # no class bodies
        seen.add(name)
sys.argv = ["flipsearch", *sys.argv[1:]]
sys.setprofile(profile)
try:
    main.main()
except SystemExit:
    pass
sys.setprofile(None)
open({place!r}, "w").write("\\n".join(sorted(seen)))
"""


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(tree: ast.AST, names: set[str]) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    result = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom) and node.module in names | {"flipsearch"}:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                result.add(full if full in names else str(node.module))
    return result & names - {"flipsearch"}


def size(function: ast.FunctionDef) -> int:
    """Return the lines of a function from `def` to its end."""
    return (function.end_lineno or 0) - function.lineno + 1


def room(module: str) -> str:
    """Return the first name under the package."""
    return module.split(".")[1]


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Return the nodes that reach themselves."""
    reach = {node: set(out) for node, out in edges.items()}
    for middle in reach:
        for node in reach:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    return sorted(node for node in reach if node in reach[node])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run --help and a small search too")
    parser.add_argument("--small", action="store_true", help="name the short functions that are used once")
    parser.add_argument("--rooms", action="store_true", help="one line for each room")
    args = parser.parse_args()
    texts = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    functions = [
        (name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]
    words = collections.Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    edges = {name: imports_of(tree, set(texts)) - {name} for name, tree in trees.items()}
    lengths = sorted(size(node) for _, node in functions)
    once = [(n, f) for n, f in functions if size(f) <= 6 and words[f.name] == 2 and not f.decorator_list]
    rooms: dict[str, set[str]] = {}
    for name, out in edges.items():
        if name.count("."):
            rooms.setdefault(room(name), set()).update(room(other) for other in out if room(other) != room(name))
    fan = max(edges, key=lambda name: len(edges[name]))
    rows = {
        "modules": len(texts),
        "lines": sum(text.count("\n") for text in texts.values()),
        "rooms": len(rooms),
        "import edges between rooms": sum(map(len, rooms.values())),
        "rooms in a circle": ", ".join(circles(rooms)) or "none",
        "modules in a circle": len(circles({n: o for n, o in edges.items() if n != "flipsearch"})),
        "largest fan-out": f"{len(edges[fan])} ({fan})",
        "functions": len(functions),
        "function lines, median": statistics.median(lengths),
        "function lines, 95 %": lengths[int(0.95 * len(lengths))],
        "used once, 6 lines or fewer": len(once),
        "longest module": max((t.count("\n"), n) for n, t in texts.items()),
    }
    for what, value in rows.items():
        print(f"{what:30} {value}")
    if args.rooms:
        for name in sorted(rooms):
            own = [size(node) for module, node in functions if module.count(".") and room(module) == name]
            files = [module for module in texts if module.count(".") and room(module) == name]
            short = sum(module.count(".") > 0 and room(module) == name for module, _ in once)
            lines = sum(texts[module].count("\n") for module in files)
            median = statistics.median(own) if own else 0
            print(
                f"{name:12} modules {len(files):3}  lines {lines:5}  functions {len(own):4}  median {median:4}  "
                f"7 lines or fewer {sum(n <= 7 for n in own):4}  used once, short {short:3}"
            )
    if args.small:
        print("\n".join(f"{name}:{node.lineno} {node.name}" for name, node in once))
    if args.run:
        run()


def run() -> None:
    """Print how many modules a small search runs functions of, and which."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "seen"
        command = (
            f"search --num-contexts 8 --max-prompts 8 --reports {folder}/r --best {folder}/best.txt --json".split()
        )
        script = Path(folder) / "trace.py"
        script.write_text(TRACE.format(place=str(place)), encoding="utf-8")
        subprocess.run([sys.executable, str(script), *command], check=False, capture_output=True, cwd=folder)
        names = [module_name(PACKAGE / line.rpartition("/flipsearch/")[2]) for line in place.read_text().splitlines()]
        print(f"{'modules that a search runs':30} {len(names)}")
        print(", ".join(name.removeprefix("flipsearch.") for name in names))


if __name__ == "__main__":
    main()
