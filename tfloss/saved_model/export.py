"""Exports a model as an inference SavedModel, checked before it replaces an earlier one. Host code.

    tfloss.export(model, "runs/digits/export", inputs={"image": tf.TensorSpec([None, 8, 8, 1])})

The SavedModel is a `tf.Module` with the variables and lookup tables that the traced functions use,
saved by `tf.saved_model.save` with named signatures. Keras's `ExportArchive` would track all of the
model, and would name the input of a model of dicts `args_0`.

There is no class for a signature in the API. A signature is what `inputs` is: specs, or specs and a
function. Further signatures are a mapping of the same.

The forward pass is that of `Trainer.evaluate`, outside of training: `tfloss.summary` and
`tf.summary` do nothing, and `current_step()` is 0.
"""

import concurrent.futures
import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint import (
    describe_nonfinite,
    named_variables,
    nonfinite_variables,
    sync_replicas,
)
from tfloss.checkpoint.saved_weights import EXPORTED
from tfloss.common.replacement import replacement
from tfloss.common.unique_names import unique_name
from tfloss.distribute.strategy import is_chief
from tfloss.errors import ExportError
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.saved_model.export_record import foreign_part, write_record
from tfloss.saved_model.forbidden_ops import check_ops, uses_half_precision
from tfloss.saved_model.signature import Inputs, Predict, Signature, parse, predict
from tfloss.saved_model.unchanged_state import check_no_random_outputs, unchanged_state
from tfloss.saved_model.verify import verify_signature

_TOLERANCE, _HALF_PRECISION_TOLERANCE = 1e-4, 2e-2
_SHOWN = 4  # names of weights in a warning


@filtered_tracebacks
def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    inputs: Inputs,
    name: str = "serving_default",
    outputs: Sequence[str] | Callable[[Any], Any] | None = None,
    *,
    signatures: Mapping[str, Inputs] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    verify: bool = True,
    overwrite: bool = True,
    allow_nonfinite: bool = False,
) -> Path:
    """Writes `model(batch, training=False)` as a SavedModel that needs neither tfloss nor Keras.

    Outputs are named by the keys of the model's predictions, joined by "/" if they are nested. A
    single tensor is `output`; those of a tuple are `output_0`, `output_1`, ... Half precision
    becomes float32. Statistics that differ between replicas (BatchNormalization's moving averages)
    are exported as their mean; the model itself doesn't change. With several workers, call it on
    all of them; the first one writes. A warning names weights that didn't exist before, since they
    are neither trained nor loaded.

    Args:
      model: A `keras.Model`, created under a strategy or not.
      path: A local directory. It is created or replaced atomically, after the export has passed all
        checks. Only an export that nobody has changed is replaced.
      inputs: Specs in the form in which the model takes its batch, without labels: `{name:
        tf.TensorSpec}`, one spec, or a tuple of specs. A first dimension of None is the batch.
        A spec may also be a `tf.RaggedTensorSpec`, a `tf.SparseTensorSpec`, or that of an extension
        type. The signature has its tensors: `tokens_values` and `tokens_row_splits`.
        Specs outside of a mapping are named by their own `name`, else `input` or `input_0`,
        `input_1`, ... Or a pair of such specs and a function that makes the batch from them:
        `({"png": tf.TensorSpec([None], tf.string)}, decode)`. It is traced without AutoGraph.
      name: The name of this signature.
      outputs: Names of the predictions to keep, or a function from the predictions to the outputs,
        which is traced. None keeps all predictions.
      signatures: Further signatures of the same model and outputs, `{name: inputs}`.
      example_inputs: `{signature name: arrays in the form of its specs}` for the comparison with
        the model, if it can't process generated inputs (encoded images, graphs, ragged tensors).
      tolerance: The largest difference from the model that is allowed, as a fraction of the
        largest magnitude of the output, or of 0.01 if that is larger. None: 1e-4, or 2e-2 if the
        graph computes in half precision. Integers and strings must always be equal.
      verify: Whether to compare the loaded export with the model, on generated batches of 1 and
        of 3 if the batch is dynamic; or on the example inputs as they are, and on 1 and 3 of their
        rows if the model accepts them. Ops and names are always checked.
      overwrite: Whether to replace an earlier export.
      allow_nonfinite: Whether the variables that are exported may have NaN or infinite values, such
        as a constant mask of minus infinities.

    Returns:
      The absolute path.

    Raises:
      ExportError: The path holds something else than an export of tfloss; the inputs don't make a
        signature; the inference forward reads a key that is not among the inputs; an output has the
        name of an input; an op doesn't belong in inference (the message has the line of source
        code); a variable is not finite; or the export disagrees with the model. Nothing has changed
        at the path.
    """
    _check_model(model)
    _upstream.finalize_states(model)
    target = _checked_path(path, overwrite)
    examples = example_inputs or {}
    parsed = _parse_all({name: inputs}, signatures or {}, examples)

    def forward(signature: Signature, tensors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        with unchanged_state(model, signature.name):
            return predict(model, signature, outputs, tensors)

    if not _is_writer(model):
        with _replicas_averaged(model):  # a collective of all workers
            return target

    def write() -> None:
        known = {id(weight) for weight in model.weights}
        traced = {signature.name: _trace(signature, forward) for signature in parsed}
        _warn_of_initial(model, known)
        for signature in parsed:
            check_no_random_outputs(model, signature.name, traced[signature.name].graph)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacement(target) as new, _replicas_averaged(model):
            written = new.path
            if not allow_nonfinite:
                _check_finite(traced.values())
            module: Any = tf.Module()
            setattr(module, EXPORTED, _named_variables(model, traced.values()))
            module.tables = _tables(traced.values())
            tf.saved_model.save(module, str(written), signatures=traced)
            loaded = tf.saved_model.load(str(written))
            for signature in parsed:
                function = loaded.signatures[signature.name]
                check_ops(signature.name, function.graph)
                if verify:
                    allowed = _tolerance(function.graph) if tolerance is None else tolerance
                    example = examples.get(signature.name)
                    verify_signature(signature, function, forward, example, allowed)
            write_record(written)
            _checked_path(target, overwrite)  # somebody may have put something there meanwhile
            new.commit()

    if tf.distribute.has_strategy():  # under its scope, loading would make replicated variables
        with concurrent.futures.ThreadPoolExecutor(1) as other_thread:
            other_thread.submit(write).result()
    else:
        write()
    return target


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ExportError(f"model must be a keras.Model, got {type(model).__name__}.")


def _checked_path(path: str | os.PathLike[str], overwrite: bool) -> Path:
    if "://" in os.fspath(path):
        raise ExportError(
            f"{os.fspath(path)} is not a local directory, and only a local directory can be "
            "replaced atomically. Export to a local directory and copy that."
        )
    target = Path(os.path.realpath(path))
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise ExportError(f"{target} exists, and overwrite is False.")
    if difference := foreign_part(target):
        raise ExportError(
            f"{target} is not exactly what tfloss.export wrote, so it is not replaced: "
            f"{difference}. Move it away, or give a path that does not exist yet."
        )
    return target


def _parse_all(
    main: Mapping[str, Inputs], further: Mapping[str, Inputs], examples: Mapping[str, Any]
) -> list[Signature]:
    if duplicates := set(main) & set(further):
        raise ExportError(f"Two signatures are named {min(duplicates)!r}. Pass another `name`.")
    parsed = [parse(name, inputs) for name, inputs in {**main, **further}.items()]
    if unknown := set(examples) - {signature.name for signature in parsed}:
        names = ", ".join(repr(signature.name) for signature in parsed)
        raise ExportError(
            f"example_inputs has an entry {min(unknown)!r}, but its keys are names of signatures: "
            f"{names}."
        )
    return parsed


def _trace(signature: Signature, forward: Predict) -> Any:
    """Traces the concrete function of a signature and checks its ops."""
    function = tf.function(
        lambda *tensors: forward(signature, tensors),
        input_signature=[tf.TensorSpec(s.shape, s.dtype, k) for k, s in signature.specs.items()],
        autograph=False,
    )
    concrete = function.get_concrete_function()
    check_ops(signature.name, concrete.graph)
    return concrete


def _tolerance(graph: Any) -> float:
    return _HALF_PRECISION_TOLERANCE if uses_half_precision(graph) else _TOLERANCE


def _named_variables(model: keras.Model, functions: Iterable[Any]) -> dict[str, Any]:
    """Finds the variables that the functions use, by their names in a checkpoint.

    `tfloss.load_weights` finds them by these names.
    """
    names: dict[int, str] = {}
    for name, variable in named_variables(model).items():
        value = variable.value if isinstance(variable, keras.Variable) else variable
        parts = value.values if isinstance(value, tf.distribute.DistributedValues) else ()
        names |= {id(one): name for one in (value, *parts)}
    found: dict[str, Any] = {}
    for variable in {id(v): v for function in functions for v in function.variables}.values():
        found[unique_name(names.get(id(variable)) or variable.name, found, "#")] = variable
    return found


def _tables(functions: Iterable[Any]) -> list[Any]:
    """Finds the lookup tables that the functions use.

    A function knows its variables, but only the handles of its tables. A table may be held by the
    model, a list in it, a module or a closure. The garbage collector knows all of them.
    """
    handles = {id(t) for f in functions for t in f.captured_inputs if t.dtype == tf.resource}
    if not handles - {id(v.handle) for function in functions for v in function.variables}:
        return []
    kind = tf.saved_model.experimental.TrackableResource
    objects = [one for one in gc.get_objects() if issubclass(type(one), kind)]
    return [one for one in objects if id(one.resource_handle) in handles]


def _warn_of_initial(model: keras.Model, known: set[int]) -> None:
    """Warns of weights that were not there before the export's forward pass."""
    made = [weight.path for weight in model.weights if id(weight) not in known]
    if made:
        rest = f" and {len(made) - _SHOWN} more" if len(made) > _SHOWN else ""
        warnings.warn(
            f"The export has made these weights of {model.name!r}, so they have their initial "
            f"values: {', '.join(made[:_SHOWN])}{rest}. Train the model, or load its weights, "
            "before the export.",
            stacklevel=2,
        )


def _check_finite(functions: Iterable[Any]) -> None:
    variables = {v.name.removesuffix(":0"): v for function in functions for v in function.variables}
    if bad := nonfinite_variables(variables):
        raise ExportError(
            f"Not exporting {describe_nonfinite(bad)} If the values are meant, pass "
            "allow_nonfinite=True."
        )


def _is_writer(model: keras.Model) -> bool:
    """Returns whether this process is the first of the workers that train the model."""
    for variable in model.variables:
        if isinstance(variable.value, tf.distribute.DistributedValues):
            return is_chief(variable.value.distribute_strategy)
    return True


@contextlib.contextmanager
def _replicas_averaged(model: keras.Model) -> Generator[None]:
    """Inside the `with`, replicas hold the mean of the variables that differ between them.

    Each replica's own values are restored afterwards, so that an export doesn't change training.
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
