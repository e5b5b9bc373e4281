"""docs/architecture.md is true: packages stand on floors, imports point down, nothing is circular.

All imports count: those inside functions and under `TYPE_CHECKING` too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "tfloss"
# From the bottom. A package or top-level module imports from floors below its own, and on its own
# floor only from what stands to the left of it.
FLOORS = [
    ["version", "errors", "common", "_upstream", "detection", "datasets"],
    ["inspect", "forward", "summary", "distribute", "checkpoint"],
    ["optimizers", "balancing", "data", "saved_model"],
    ["step", "evaluation", "replay"],
    ["engine", "hooks"],
    ["trainer"],
    ["adapters", "app", "cli", "__main__"],
]
ORDER = [name for floor in FLOORS for name in floor]


def _modules() -> dict[str, Path]:
    """`{dotted name: file}` of all of tfloss but its root."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ["tfloss", *path.relative_to(ROOT).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    found.pop("tfloss")
    return found


MODULES = _modules()


def _imports(path: Path) -> Iterator[str]:
    """The modules of tfloss that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfloss":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("tfloss."))


def _package(module: str) -> str:
    return module.split(".")[1]


def package_imports() -> set[tuple[str, str]]:
    """`(importer, imported)` for all imports between packages and top-level modules."""
    pairs = {
        (_package(module), _package(other))
        for module, path in MODULES.items()
        for other in _imports(path)
    }
    return {(importer, imported) for importer, imported in pairs if importer != imported}


def test_every_package_has_a_floor():
    packages = {_package(module) for module in MODULES}
    assert packages == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_the_top_level_is_short():
    entries = [p for p in ROOT.iterdir() if not p.is_dir()]
    assert len(entries) <= 12, sorted(p.name for p in entries)


def test_imports_only_point_down():
    for module, path in MODULES.items():
        for other in _imports(path):
            mine, theirs = _package(module), _package(other)
            if theirs != mine:
                assert ORDER.index(theirs) < ORDER.index(mine), f"{path} imports {other}"


def test_no_circle_among_files():
    edges = {
        module: {other for other in _imports(path) if other in MODULES and other != module}
        for module, path in MODULES.items()
    }
    # A package's __init__ offers its modules by name; what imports from it depends on those.
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, [*way, module])
            done.add(module)

    for module in edges:
        visit(module, [])


def test_files_stay_small():
    for path in ROOT.rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= 455, f"{path} has {lines} lines"


def test_classes_and_functions_stay_small():
    """A class of more than 15 methods says in its docstring why: "methods because"."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(one, ast.FunctionDef) for one in node.body)
                excused = "methods because" in (ast.get_docstring(node) or "")
                assert methods <= 15 or excused, f"{path}: {node.name} has {methods} methods"
            elif isinstance(node, ast.FunctionDef):
                lines = _body_lines(node)
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def _body_lines(function: ast.FunctionDef) -> int:
    """The lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
