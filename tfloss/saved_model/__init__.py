"""An inference SavedModel of a model, checked before it is there.

    tfloss.export(model, "runs/digits/export", inputs={"image": tf.TensorSpec([None, 8, 8, 1])})

It is a `tf.Module` that holds the variables and lookup tables which the traced functions use,
and nothing else, saved by `tf.saved_model.save` with named signatures. Keras's `ExportArchive`
tracks the whole model instead, and names the inputs of a model of dicts `args_0`.

There is no class for a signature: it is what `inputs` is, specs or a pair of specs and a
function, so that there is one thing to learn, and further signatures are a mapping of it.

All of this is host code. The forward pass is the one that `Trainer.evaluate` runs, but nobody
trains: `tfloss.summary` and `tf.summary` do nothing, `current_step()` is 0.
"""

import concurrent.futures
import contextlib
import gc
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfloss.checkpoint import sync_replicas
from tfloss.distribute.strategy import is_chief
from tfloss.errors import ExportError
from tfloss.saved_model.checks import check_ops, verify_signature
from tfloss.saved_model.signature import Inputs, Predict, Signature, parse, predict


def export(
    model: keras.Model,
    path: str | os.PathLike,
    inputs: Inputs,
    name: str = "serving_default",
    outputs: Sequence[str] | Callable[[Any], Any] | None = None,
    *,
    signatures: Mapping[str, Inputs] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    verify: bool = True,
    overwrite: bool = True,
) -> Path:
    """Writes `model(batch, training=False)` as a SavedModel that needs neither tfloss nor Keras.

    Outputs are named by the keys of the model's predictions, joined by "/" where nested; a
    single tensor is `output`, those of a tuple are `output_0`, `output_1`, ... Half precision
    becomes float32. Statistics that differ between replicas (BatchNormalization's moving
    averages) are exported as their mean; the model itself is left as it was. With several
    workers call it on all of them; the first one writes.

    Args:
      model: a `keras.Model`, created under a strategy or not.
      path: a local directory. It appears whole or not at all, and an earlier export there is
        replaced only when the new one has passed every check.
      inputs: what the signature takes, in the form in which the model takes its batch, without
        labels: `{name: tf.TensorSpec}`, one spec, or a tuple of specs. A first dimension of
        None is the batch. Specs outside of a mapping are named by their own `name`, else
        `input` or `input_0`, `input_1`, ... Or a pair of such specs and a function that makes
        the batch of them: `({"png": tf.TensorSpec([None], tf.string)}, decode)`. It is traced,
        without AutoGraph.
      name: the name of that signature.
      outputs: names of the predictions to keep, or a function of the predictions that returns
        what to export (traced). None: all of them.
      signatures: further signatures of the same model and outputs, `{name: inputs}`.
      example_inputs: `{signature name: arrays in the form of its specs}` for the comparison
        with the model, where inputs made up from the specs won't do (encoded images).
      tolerance: the largest difference from the model allowed, as a fraction of the output's
        largest magnitude (taken as 0.01 where it is less). None: 1e-4, or 2e-2 where the graph
        computes in half precision. Integers and strings must always be equal.
      verify: whether to compare the reloaded export with the model, on batches of 1 and of 3
        where the batch is dynamic. Ops and names are checked in any case.
      overwrite: whether an earlier export may be replaced.

    Returns:
      The path, absolute.

    Raises:
      ExportError: something else lies at the path; inputs that can't make a signature; an
        inference forward that asks for more than the inputs; an output named like an input;
        an op that has no place in inference, with the source line; an export that disagrees
        with the model. Nothing has changed at the path then.
    """
    if not isinstance(model, keras.Model):
        raise ExportError(f"model must be a keras.Model, got {type(model).__name__}.")
    target = _checked_path(path, overwrite)
    parsed = _parse_all({name: inputs}, signatures or {}, example_inputs or {})

    def forward(signature: Signature, tensors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        return predict(model, signature, outputs, tensors)

    if not _writes(model):
        with _replicas_averaged(model):  # which takes all workers
            return target

    def write() -> None:
        traced = {signature.name: _trace(signature, forward) for signature in parsed}
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch,
            _replicas_averaged(model),
        ):
            written = Path(scratch) / "export"
            module: Any = tf.Module()
            module.state = _captured_state(traced.values())
            tf.saved_model.save(module, str(written), signatures=traced)
            reloaded = tf.saved_model.load(str(written))
            for signature in parsed:
                function = reloaded.signatures[signature.name]
                half = check_ops(signature.name, function.graph)
                if verify:
                    example = (example_inputs or {}).get(signature.name)
                    allowed = (2e-2 if half else 1e-4) if tolerance is None else tolerance
                    verify_signature(signature, function, forward, example, allowed)
            _put_in_place(written, target, Path(scratch) / "earlier")

    if tf.distribute.has_strategy():  # in a scope what is loaded is replicated: leave it
        with concurrent.futures.ThreadPoolExecutor(1) as another_thread:
            another_thread.submit(write).result()
    else:
        write()
    return target


def _checked_path(path: str | os.PathLike, overwrite: bool) -> Path:
    if "://" in os.fspath(path):
        raise ExportError(
            f"{os.fspath(path)} is not a local directory, and only there can an export be put in "
            "place at once. Export to a local directory and copy that."
        )
    target = Path(os.path.realpath(path))
    if not target.exists():
        return target
    if not (target / "saved_model.pb").is_file():
        raise ExportError(
            f"{target} exists and is no earlier export (it has no saved_model.pb), so it is not "
            "replaced. Give a path that does not exist yet."
        )
    if not overwrite:
        raise ExportError(f"{target} is an earlier export, and overwrite is False.")
    return target


def _parse_all(
    main: Mapping[str, Inputs], further: Mapping[str, Inputs], examples: Mapping[str, Any]
) -> list[Signature]:
    if twice := set(main) & set(further):
        raise ExportError(f"Two signatures are named {min(twice)!r}. Pass another `name`.")
    parsed = [parse(name, inputs) for name, inputs in {**main, **further}.items()]
    if unknown := set(examples) - {signature.name for signature in parsed}:
        names = ", ".join(repr(signature.name) for signature in parsed)
        raise ExportError(
            f"example_inputs has an entry {min(unknown)!r}, but its keys are names of signatures: "
            f"{names}."
        )
    return parsed


def _trace(signature: Signature, forward: Predict) -> Any:
    """The signature's concrete function, with its ops checked."""
    function = tf.function(
        lambda *tensors: forward(signature, tensors),
        input_signature=[tf.TensorSpec(s.shape, s.dtype, k) for k, s in signature.specs.items()],
        autograph=False,
    )
    concrete = function.get_concrete_function()
    check_ops(signature.name, concrete.graph, traced_here=True)
    return concrete


def _captured_state(functions: Iterable[Any]) -> list[Any]:
    """The variables and lookup tables that the functions use.

    A function knows its variables, but only the handles of its tables. These may hang on the
    model, in a list on it, in a module or in a closure; the garbage collector sees them all.
    """
    variables = {id(v): v for function in functions for v in function.variables}
    handles = {id(t) for f in functions for t in f.captured_inputs if t.dtype == tf.resource}
    tables = []
    if handles - {id(v.handle) for v in variables.values()}:
        kind = tf.saved_model.experimental.TrackableResource
        objects = [one for one in gc.get_objects() if issubclass(type(one), kind)]
        tables = [one for one in objects if id(one.resource_handle) in handles]
    return [*variables.values(), *tables]


def _writes(model: keras.Model) -> bool:
    """Whether this process is the first of the workers that the model is trained by."""
    for variable in model.variables:
        if isinstance(variable.value, tf.distribute.DistributedValues):
            return is_chief(variable.value.distribute_strategy)
    return True


@contextlib.contextmanager
def _replicas_averaged(model: keras.Model) -> Iterator[None]:
    """Inside, every replica has the mean of variables that each has its own value of.

    Their own values come back afterwards, so that to export changes nothing about training.
    """
    values = [variable.value for variable in model.non_trainable_variables]
    distributed = [one for one in values if isinstance(one, tf.distribute.DistributedValues)]
    before = [(copy, copy.numpy()) for one in distributed for copy in one.values]
    try:
        if before:
            sync_replicas(model)
        yield
    finally:
        for copy, array in before:
            copy.assign(array)


def _put_in_place(written: Path, target: Path, earlier: Path) -> None:
    if not target.exists():
        written.rename(target)
        return
    target.rename(earlier)
    try:
        written.rename(target)
    except OSError:
        earlier.rename(target)
        raise
