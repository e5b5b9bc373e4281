"""Trains, evaluates and exports published models by Keras and by tfloss, and compares the numbers.

    python benchmarks/published_models.py                  # all: half an hour on two idle cores
    python benchmarks/published_models.py ResNet50 VGG16   # these only; the others stay as they are
    python benchmarks/published_models.py --page           # only writes docs/published_models.md

Each model runs in its own process. The results are kept in published_models.json, and the page is
made from them. KerasHub's models need `pip install keras-hub`.
"""

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "published_models.md"
BEGIN = "<!-- Written by benchmarks/published_models.py -->"
END = "<!-- End of what is written by benchmarks/published_models.py -->"
PRELOADED = ["_published_recipes", "tfloss.adapters", "tfloss.saved_model.export"]
STEPS, BATCHES = 3, 2
# The largest differences that pass, as fractions: of the largest change that training makes in a
# weight, of the metric, and of the largest output.
BOUNDS = {"difference": 1e-6, "evaluation": 1e-6, "export": 1e-5}


def compare(name: str) -> dict[str, Any]:
    """Trains, evaluates and exports one model in both ways.

    Returns:
      The figures of the page, or `{"stage": where it failed, "error": the reason}`.
    """
    import keras

    import tfloss
    from tfloss import _upstream
    from tfloss.adapters import from_compiled

    stage = "fit"
    try:
        model, data, recipe = _made(name)
        first = [v.numpy() for v in model.variables]  # states of random generators, too
        _compile(model, recipe)
        # Past the `fit` of a task that only raises an error.
        with _upstream.ordered_sums():  # as in the trainer's steps; without it, fit may vary
            keras.Model.fit(model, data.repeat(), epochs=1, steps_per_epoch=STEPS, verbose=0)
        reference = [v.numpy() for v in model.variables]
        stage = "training"
        for variable, value in zip(model.variables, first, strict=True):
            variable.assign(value)
        _compile(model, recipe)
        adapted = from_compiled(model)
        trainer = tfloss.Trainer(adapted, model.optimizer, default_hooks=False, jit=False)
        trainer.train(data.repeat(), steps=STEPS)
        weights = [v.numpy() for v in model.variables]
        found: dict[str, Any] = {
            "variables": len(weights),
            "equal": sum(same(a, b) for a, b in zip(reference, weights, strict=True)),
            "unchanged": sum(same(a, b) for a, b in zip(first, weights, strict=True)),
            "difference": _of_update(first, reference, weights),
            "finite": all(bool((abs(w) < math.inf).all()) for w in weights if w.dtype.kind == "f"),
        }
        stage = "evaluation by Keras"
        expected = keras.Model.evaluate(model, data, verbose=0, return_dict=True)
        stage = "evaluation"
        actual = trainer.evaluate(data)
        found["metrics"] = {k: float(v) for k, v in expected.items()}
        found["other_names"] = sorted(set(expected) ^ set(actual))
        common = [k for k in expected if k in actual]
        found["evaluation"] = max(difference(expected[k], actual[k]) for k in common)
        stage = "export"
        found["export"] = _exported(model, adapted, recipe)
    except Exception as error:  # noqa: BLE001 - it is what the page shows
        traceback.print_exc()
        return {"stage": stage, "error": f"{type(error).__name__}: {error}"}
    return found


def _made(name: str) -> tuple[Any, Any, Any]:
    """Builds a model. Returns it, the data and the recipe."""
    import keras
    import tensorflow as tf
    from _published_recipes import RECIPES

    keras.utils.set_random_seed(1)
    recipe = RECIPES[name]()
    # Keras's 0.99 leaves the moving averages near their initial values for hundreds of steps, and
    # deep networks then grow beyond float32 in inference.
    for layer in recipe.model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    return recipe.model, tf.data.Dataset.from_tensors(recipe.batch).repeat(BATCHES), recipe


def _compile(model: Any, recipe: Any) -> None:
    """Compiles a model with a new optimizer."""
    import keras

    if any(isinstance(one, keras.layers.Embedding) for one in model._flatten_layers()):
        optimizer = keras.optimizers.SGD(0.01)
    else:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0)
    model.compile(optimizer=optimizer, jit_compile=False, **recipe.compiled)


def _exported(model: Any, adapted: Any, recipe: Any) -> float:
    """Exports a model. Returns the difference of the loaded SavedModel from Keras's predict."""
    import keras
    import tensorflow as tf

    import tfloss

    x = recipe.batch[0]
    specs = keras.tree.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), x)
    predict_step = keras.Model.predict_step  # not that of a task, which decodes the outputs
    model.predict_step = lambda data: predict_step(model, data)
    expected = keras.Model.predict(model, tf.data.Dataset.from_tensors((x,)), verbose=0)
    expected = expected if recipe.outputs is None else recipe.outputs(expected)
    with tempfile.TemporaryDirectory() as folder:
        path = tfloss.export(
            adapted,
            Path(folder) / "export",
            specs,
            outputs=recipe.outputs,
            example_inputs={"serving_default": x},
        )
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        given = x if isinstance(x, dict) else {"input": x}
        actual = signature(**{k: tf.constant(v) for k, v in given.items()})
    named = expected if isinstance(expected, dict) else {"output": expected}
    if set(named) != set(actual):
        raise ValueError(f"predict has {sorted(named)}, the export has {sorted(actual)}")
    return max(difference(named[k], actual[k].numpy()) for k in named)


def _of_update(first: Any, expected: Any, actual: Any) -> float:
    """The largest difference of weights, as a fraction of the largest change in training."""
    import numpy as np

    change, apart = 0.0, 0.0
    for before, a, b in zip(first, expected, actual, strict=True):
        if a.dtype.kind != "f":  # states of random generators
            apart = apart if same(a, b) else math.inf
            continue
        finite = np.isfinite(a)
        if np.any(finite != np.isfinite(b)):
            return math.inf
        change = max(change, np.max(np.abs(a - before)[finite], initial=0.0))
        apart = max(apart, np.max(np.abs(a - b)[finite], initial=0.0))
    return float(apart / change)


def same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same bits, where any NaN equals any other."""
    import numpy as np

    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def difference(expected: Any, actual: Any) -> float:
    """The largest difference, as a fraction of the largest value. NaN equals NaN."""
    import numpy as np

    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if a.shape != b.shape or np.any(np.isfinite(a) != np.isfinite(b)):
        return math.inf
    finite = np.isfinite(a)
    largest = np.max(np.abs(a[finite]), initial=0.0)
    return float(np.max(np.abs(a - b)[finite], initial=0.0) / max(largest, 1e-30))


def run(name: str) -> dict[str, Any]:
    """Compares one model in a process of its own, which starts with TensorFlow imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {"stage": "process", "error": f"exit status {process.exitcode}"}
    finally:
        process.join()


def _send(name: str, to: "multiprocessing.connection.Connection") -> None:
    import tensorflow as tf

    warnings.simplefilter("ignore")
    tf.config.experimental.enable_op_determinism()
    # It adds up three gradients and more in an order that depends on the graph around them.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    to.send(compare(name))


def verdict(found: dict[str, Any]) -> str:
    """Whether a model passes, and else the reason."""
    if "error" in found:
        return f"fails in {found['stage']}: {' '.join(found['error'].split())[:200]}"
    if found["other_names"]:
        return f"other names of metrics: {', '.join(found['other_names'])}"
    beyond = [name for name, bound in BOUNDS.items() if not found[name] <= bound]
    return f"beyond the bound: {', '.join(beyond)}" if beyond else "pass"


def table(results: dict[str, Any]) -> str:
    """Returns the part of the page that is made from the results."""
    from _published_recipes import APPLICATIONS, HUB

    versions = ", ".join(f"{name} {one}" for name, one in results["versions"].items())
    lines = [f"Versions: {versions}. On a CPU, without XLA."]
    for title, names in (("keras.applications", APPLICATIONS), ("KerasHub", HUB)):
        lines += ["", f"## {title}", "", "| model | weights | `evaluate` | export | result |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        found = {one: results["models"][one] for one in names if one in results["models"]}
        lines += [_row(name, one) for name, one in found.items()]
        passed = sum(verdict(one) == "pass" for one in found.values())
        lines += ["", f"{passed} of {len(found)} pass."]
    return "\n".join(lines)


def _row(name: str, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {name} | | | | {verdict(found)} |"
    weights = f"all {found['variables']} equal"
    if found["equal"] < found["variables"]:
        weights = f"{found['equal']} of {found['variables']} equal, "
        weights += f"the others within {_bound(found['difference'])}"
    shown = ", ".join(f"{k} {v:.4g}" for k, v in sorted(found["metrics"].items()))
    evaluation = f"{shown} ({_bound(found['evaluation'])})"
    return f"| {name} | {weights} | {evaluation} | {_bound(found['export'])} | {verdict(found)} |"


def _bound(value: float) -> str:
    """A difference, rounded up to a power of ten, so that it depends less on the processor."""
    if value == 0:
        return "equal"
    return f"< 1e{math.floor(math.log10(value)) + 1}" if value < math.inf else "different"


def write_page() -> None:
    """Writes the results into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    results = json.loads(RESULTS.read_text())
    PAGE.write_text("\n".join([before + BEGIN, "", table(results), "", END + after]))


def main() -> None:
    """Compares the models that the command names, or all, and writes the page."""
    from _published_recipes import HUB, RECIPES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names of models; none: all of them")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    names = [] if arguments.page else arguments.models or [*RECIPES]
    for i, name in enumerate(names, 1):
        start = time.monotonic()
        found = run(name)
        seconds = time.monotonic() - start
        print(f"{i}/{len(names)} {name}: {verdict(found)} ({seconds:.0f} s)", flush=True)
        results = (
            json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}, "versions": {}}
        )
        results["models"][name] = found
        for package in ("tensorflow", "keras", *(["keras-hub"] if name in HUB else [])):
            results["versions"][package] = importlib.metadata.version(package)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    write_page()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    sys.path.insert(0, str(PAGE.parents[1]))
    main()
