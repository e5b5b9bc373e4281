"""Compares both forms: lines of code, decisions on tasks, and tensors that leave the forward pass.

python benchmarks/why/sizes.py
"""

import ast
import dataclasses
import inspect
import os
import sys
from collections.abc import Collection
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from _examples import ROOT  # noqa: E402
from _models import DETECTOR, PENGUINS, detector, detector_batch, penguins, penguins_batch  # noqa: E402

WHY = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of an algorithm.

    Attributes:
      path: The file.
      functions: The functions that training needs, or None for all.
      switches: The expressions that decide whether a task takes part.
    """

    path: Path
    functions: Collection[str] | None
    switches: tuple[str, ...]


FORMS = {
    ("Two-stage detector", "one forward"): Form(
        ROOT / "examples/detector/model.py",
        ("Detector.call", "Detector.rpn_losses", "Detector.roi_losses"),
        ("self.mask_head",),
    ),
    ("Two-stage detector", "model + losses"): Form(
        WHY / "detector_split.py", None, ("self.mask_head", "masks")
    ),
    ("Five tasks", "one forward"): Form(
        ROOT / "examples/penguins/model.py",
        ("Penguins.call", "cross_entropy", "squared_error"),
        ("tasks",),
    ),
    ("Five tasks", "model + losses"): Form(WHY / "penguins_split.py", None, ("tasks",)),
}


def functions(form: Form) -> dict[str, ast.FunctionDef]:
    """Finds the functions of a form: `{"Class.method": node, "function": node}`."""
    found = {}
    for node in ast.parse(form.path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found.update({f"{node.name}.{method.name}": method for method in methods})
    return {k: v for k, v in found.items() if form.functions is None or k in form.functions}


def lines(function: ast.FunctionDef) -> int:
    """Counts lines of code as ruff formats them, without docstrings, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    code = ast.fix_missing_locations(ast.Module(body, []))
    taken = {line for n in ast.walk(code) if hasattr(n, "lineno") for line in _span(n)}
    return 1 + len(taken)  # the signature counts as one


def _span(node) -> range:
    compound = isinstance(node, ast.If | ast.For | ast.With | ast.FunctionDef)
    return range(node.lineno, node.lineno + 1 if compound else node.end_lineno + 1)


def branches(function: ast.FunctionDef, switches: Collection[str]) -> int:
    """Counts decisions on whether a task takes part."""
    tests = [ast.unparse(n.test) for n in ast.walk(function) if isinstance(n, ast.If | ast.IfExp)]
    return sum(any(switch in test for switch in switches) for test in tests)


def crossing(name: str, form: str) -> tuple[int, int]:
    """Counts tensors and bytes that leave the training forward of a batch, y of `fit` included."""
    whole = form == "one forward"
    if name == "Two-stage detector":
        model, batch = detector(whole), detector_batch()
        y = {} if whole else inspect.getmodule(type(model)).targets(batch, True)[1]
    else:
        model, batch = penguins(whole), penguins_batch()
        y = {} if whole else inspect.getmodule(type(model)).targets(model, batch)[1]
    model.compile(keras.optimizers.SGD(0.1))
    out = tf.nest.flatten([model(batch, training=True), y])
    return len(out), sum(x.dtype.size * int(tf.size(x)) for x in out)


def table() -> str:
    """Formats the table in Markdown."""
    rows = [
        "| | | functions | lines | decisions on a task | tensors that cross | size in bytes |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for (name, kind), form in FORMS.items():
        nodes = functions(form).values()
        count, size = crossing(name, kind)
        length = sum(lines(n) for n in nodes)
        decided = sum(branches(n, form.switches) for n in nodes)
        rows.append(
            f"| {name} | {kind} | {len(nodes)} | {length} | {decided} | {count} | {size:,} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    print(f"Batches of {DETECTOR['batch']} scenes and {PENGUINS['batch']} penguins.")
