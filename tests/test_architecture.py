"""docs/architecture.md is true: imports only point down its table of rooms."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "tfloss"
ORDER = [
    "version",
    "errors",
    "_upstream",
    "_xla_random",
    "workdir",
    "lock",
    "batches",
    "context",
    "graphs",
    "randomness",
    "xla",
    "collective",
    "losses",
    "groups",
    "summary",
    "detection",
    "cluster",
    "rendezvous",
    "distribution",
    "agreement",
    "signals",
    "seeds",
    "precision",
    "ema",
    "report",
    "backward",
    "shares",
    "fused",
    "update",
    "variables",
    "step",
    "guard",
    "pull",
    "blocks",
    "compiled_loop",
    "engine",
    "result",
    "stopwatch",
    "window",
    "data",
    "tuning",
    "modes",
    "evaluation",
    "checkpoint",
    "warm_start",
    "hooks",
    "state",
    "resume",
    "replay",
    "loop",
    "trainer",
    "saved_model",
    "adapters",
    "app",
    "launch",
    "cli",
]


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Rooms imported when the module is, not inside functions or for type checking."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfloss":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tfloss.")}
    return found


def test_every_module_is_in_the_table():
    rooms = {_room(p) for p in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(ORDER), rooms - set(ORDER)
    assert set(ORDER) <= rooms, set(ORDER) - rooms


def test_imports_only_point_down():
    for path in ROOT.rglob("*.py"):
        room = _room(path)
        if room != "__init__":
            for other in _imported(path) - {room}:
                assert ORDER.index(other) < ORDER.index(room), f"{path} imports {other}"


def test_files_stay_small():
    for path in ROOT.rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= 420, f"{path} has {lines} lines"
