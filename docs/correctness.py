"""Writes docs/correctness.md: what goes wrong in TensorFlow and Keras, and which tests show it.

    python docs/correctness.py

A test marked `@pytest.mark.promise(3)` belongs to statement 3. One that is also marked `upstream`
shows plain TensorFlow or Keras failing it: when it fails, upstream has changed.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# TensorFlow 2.21, Keras 3.15.
STATEMENTS = {
    1: (
        "Losses added before and after a synchronisation (synchronised BatchNormalization, "
        "`all_reduce`) are mixed between replicas: value and gradient are wrong.",
        "Each replica's losses are its own; float32, read as often as one likes.",
    ),
    2: (
        "`tf.train.Checkpoint` leaves out layers in lists and dicts; `assert_consumed` passes.",
        "Every variable is saved by its path, whatever holds the layer.",
    ),
    3: (
        "`LossScaleOptimizer` looks at replica 0's gradients: infinity on another is applied.",
        "Not finite on any replica: nothing changes anywhere, the scale is halved once.",
    ),
    4: (
        "BatchNormalization's statistics differ between replicas; replica 0's are saved.",
        "Saved, evaluated and exported are the means over replicas.",
    ),
    5: (
        "What is set in the main thread can't be seen in a replica's.",
        "Summaries and `current_step()` work from anywhere in the forward pass.",
    ),
    6: (
        "Dropout draws the same mask on every replica.",
        "Each replica draws its own; again in the next run with the same seed, and on resuming.",
    ),
    7: (
        "`tf.summary` in traced code freezes step, writer and tag; replica 0 alone writes.",
        "The right step and tag, once, averaged over replicas, only on due steps.",
    ),
    8: (
        "Optimizers clip each replica's gradient, then sum.",
        "Summed over replicas, then clipped.",
    ),
    9: (
        "Uneven or empty batches, and losses normalised by what was found, give another gradient "
        "on several replicas; an empty batch makes statistics NaN.",
        "The gradient is that of the global batch, however cut; empty replicas change nothing.",
    ),
    10: (
        "`add_loss` in a rematerialised block has no gradient.",
        "It is refused, with the line.",
    ),
    11: (
        "Labels in the input are cast to half precision.",
        "They reach the forward pass bit by bit; losses are float32.",
    ),
    12: (
        "Optimizer slots are restored by position, and a failing restore leaves half of it.",
        "Slots go by their variable's path; nothing is assigned unless everything fits.",
    ),
    13: (
        "The random state of Dropout is in no checkpoint.",
        "It is; a resumed run goes on bit for bit.",
    ),
    14: (
        "With accumulation, schedules and averages run at the rate of micro-batches.",
        "`accumulate=4` of 8 is one batch of 32: weights, schedule, averages, clipping.",
    ),
    15: (
        "Accumulation and averages crash under several replicas.",
        "Accumulation, averages, clipping, scaling and skipping work, alone and together.",
    ),
    16: (
        "Freezing a layer after the step was traced is ignored.",
        "Respected between two `train` calls, as is unfreezing; one trace otherwise.",
    ),
    17: (
        "One worker's collective read hangs; an absent peer hangs start-up for ever.",
        "All workers read; start-up has a deadline that names who is missing; SIGTERM saves.",
    ),
    18: (
        "`fit` fails under `MultiWorkerMirroredStrategy`.",
        "The same numbers on one process and on several workers.",
    ),
    19: (
        "A distributed iterator is in no checkpoint, nor is one that reads Python code: a resumed "
        "run begins its data anew.",
        "The data go on where training was, on any number of replicas; of a `Source` at once.",
    ),
    20: (
        "Variables made inside the step fail obscurely, or are in no checkpoint.",
        "Made before the first step; otherwise refused by name, as are those of another scope.",
    ),
    21: (
        "A summary under XLA does not compile.",
        "Summaries are outputs of the step, and compile.",
    ),
    22: (
        "`add_loss` and summaries in branches and loops raise InaccessibleTensorError elsewhere.",
        "Refused where they are called, with the way out.",
    ),
    25: (
        "A mean over nothing is NaN, and so is its gradient.",
        "`global_mean` over nothing is 0 with gradient 0, on one replica or on all.",
    ),
    26: (
        "`fit` with several steps a call fails under several replicas.",
        "Any number of steps a call, on any number of replicas.",
    ),
    28: (
        "Restoring brings an old constant learning rate back.",
        "The new one applies, and the difference is reported.",
    ),
    29: (
        "Models that compute their losses themselves have no validation loss.",
        "Validation losses by name, without any change of state.",
    ),
    31: (
        "Closing a `tf.data` iterator waits for the autotuner's thread, for as long as it was "
        "used, up to a minute: so long does the end of `fit` and of the process hang.",
        "`train` and `evaluate` return within 0.2 s of their last step.",
    ),
}


def promises() -> dict[int, list[tuple[str, str, bool]]]:
    """`{statement: [(file, test, whether it shows upstream failing)]}`."""
    found: dict[int, list[tuple[str, str, bool]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        whole = "upstream" in path.read_text() and any(
            isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])
            for node in tree.body
        )
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = [ast.unparse(one) for one in node.decorator_list]
            upstream = whole or any(one.startswith("pytest.mark.upstream") for one in marks)
            for one in node.decorator_list:
                if ast.unparse(one).startswith("pytest.mark.promise(") and isinstance(
                    one, ast.Call
                ):
                    for number in one.args:
                        row = (path.relative_to(ROOT).as_posix(), node.name, upstream)
                        found.setdefault(int(ast.unparse(number)), []).append(row)
    return found


def table() -> str:
    """The whole document."""
    found = promises()
    unknown = set(found) - set(STATEMENTS)
    if unknown:
        raise SystemExit(f"Tests are marked with statements that are not here: {sorted(unknown)}")
    lines = [
        "# What goes wrong elsewhere, and is tested here",
        "",
        "Seen with TensorFlow 2.21 and Keras 3.15. *Shown* is a test in which plain TensorFlow",
        "or Keras fails; it fails itself when upstream changes. *Held* are tests of tfloss.",
        "Written by `python docs/correctness.py` from the tests' marks.",
        "",
        "| | TensorFlow / Keras | tfloss | tests |",
        "| --: | --- | --- | --- |",
    ]
    for number, (wrong, right) in STATEMENTS.items():
        rows = found.get(number, [])
        shown = [_link(file, name) for file, name, upstream in rows if upstream]
        held = [_link(file, name) for file, name, upstream in rows if not upstream]
        tests = [f"*shown:* {', '.join(shown)}"] * bool(shown)
        tests += [f"*held:* {', '.join(held)}"] * bool(held)
        lines.append(f"| {number} | {wrong} | {right} | {'<br>'.join(tests)} |")
    return "\n".join(lines) + "\n"


def _link(file: str, name: str) -> str:
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"


if __name__ == "__main__":
    (ROOT / "docs" / "correctness.md").write_text(table())
