"""A signature of an export: from named input tensors to named output tensors.

Host code and, while a signature is traced, traced code.
"""

import dataclasses
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ExportError
from tfloss.forward.context import plain_forward
from tfloss.inspect.source_lines import error_line
from tfloss.saved_model.composite_inputs import pack, tensor_specs

Spec = Union[tf.TensorSpec, "tf.TypeSpec[Any]"]  # the stub's generic class isn't one at run time
Specs = Spec | Sequence[Spec] | Mapping[str, Spec]
Inputs = Specs | tuple[Specs, Callable[[Any], Any]]

_RESERVED = {*keyword.kwlist, "self"}


@dataclasses.dataclass(frozen=True)
class Signature:
    """The parsed `inputs` of one signature.

    Attributes:
      name: The name of the signature.
      inputs: `{input name: spec}` as the user described them. Some may be composite.
      form: A function from values, in the order of `inputs`, to the form that the user described.
      specs: `{tensor name: spec}`: the inputs, with the composite ones opened.
      batch: A function from tensors, in the order of `specs`, to the model's batch.
    """

    name: str
    inputs: dict[str, Any]
    form: Callable[[Sequence[Any]], Any]
    specs: dict[str, tf.TensorSpec]
    batch: Callable[[Sequence[tf.Tensor]], Any]


Predict = Callable[[Signature, Sequence[tf.Tensor]], dict[str, tf.Tensor]]


def parse(name: str, inputs: Any) -> Signature:
    """Parses the `inputs` of one signature.

    Args:
      name: The name of the signature.
      inputs: Specs, or specs and a function, see `tfloss.export`.

    Returns:
      The signature.

    Raises:
      ExportError: The inputs are empty or no specs, or a name is invalid or given twice.
    """
    given: Any = inputs
    to_batch: Callable[[Any], Any] = _identity
    if isinstance(inputs, tuple) and len(inputs) == 2 and callable(inputs[1]):
        given, to_batch = inputs
    named, form = _flatten(given)
    opened = [tensor_specs(str(key), spec) for key, spec in named]
    specs = [one for tensors in opened for one in tensors]
    where = f"of signature {name!r}"
    if not specs:
        raise ExportError(f"The inputs {where} are empty.")
    for key, spec in specs:
        if not isinstance(spec, tf.TensorSpec):
            raise ExportError(
                f"Input {key!r} {where} must be a tf.TensorSpec, such as "
                f"tf.TensorSpec([None, 28, 28, 1], tf.float32), a tf.RaggedTensorSpec, a "
                f"tf.SparseTensorSpec or the spec of an extension type, got {type(spec).__name__}. "
                "If the model's batch is nested, pass (specs, function that makes the batch)."
            )
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", str(key)) or key in _RESERVED:
            raise ExportError(
                f"Input name {key!r} {where} can't be used by TensorFlow. Use letters, digits and "
                "_, but no Python keyword. To rename it for the model, pass (specs, function that "
                "makes the batch)."
            )
    if len(dict(specs)) < len(specs):
        raise ExportError(f"Two inputs {where} have the same name: {[key for key, _ in specs]}.")

    def batch(tensors: Sequence[tf.Tensor]) -> Any:
        rest = iter(tensors)
        values = [
            pack(spec, [next(rest) for _ in parts])
            for (_, spec), parts in zip(named, opened, strict=True)
        ]
        return to_batch(form(values))

    return Signature(name, dict(named), form, dict(specs), batch)


def _identity(batch: Any) -> Any:
    return batch


def _flatten(given: Any) -> tuple[list[tuple[str, Any]], Callable[[Sequence[Any]], Any]]:
    if isinstance(given, Mapping):
        return list(given.items()), lambda values: dict(zip(given, values, strict=True))
    if isinstance(given, list | tuple):
        names = [getattr(spec, "name", None) or f"input_{i}" for i, spec in enumerate(given)]
        return list(zip(names, given, strict=True)), type(given)
    return [(getattr(given, "name", None) or "input", given)], lambda values: values[0]


def predict(
    model: keras.Model,
    signature: Signature,
    outputs: Sequence[str] | Callable[[Any], Any] | None,
    tensors: Sequence[tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Runs the inference forward, eagerly or while it is traced.

    Args:
      model: The model.
      signature: The signature.
      outputs: Names of the predictions to keep, a function from predictions to outputs, or None.
      tensors: The input tensors, in the order of the signature's specs.

    Returns:
      `{output name: tensor}`.

    Raises:
      ExportError: The model reads a key that is not among the inputs, or inputs without names by
        name; or its predictions can't be the outputs of a signature.
    """
    batch: Any = None
    try:
        batch = signature.batch(tensors)
        quiet = tf.summary.record_if(False)
        with _upstream.inputs_untouched(model), plain_forward(False), quiet:
            predictions = model(batch, training=False)
    except KeyError as error:
        cause = _upstream.find_cause(error, KeyError)
        key = cause.args[0] if cause.args else None
        if key in signature.inputs:
            raise
        raise ExportError(
            f"The inference forward asked for key {key!r}, which is not among the inputs of "
            f"signature {signature.name!r} ({', '.join(signature.inputs)}), at "
            f"{error_line(cause)}. Use it only if training (a label), or add it to the inputs."
        ) from None
    except TypeError as error:
        cause = _upstream.find_cause(error, TypeError)
        if isinstance(batch, Mapping) or not _upstream.caused_by_name_as_index(cause):
            raise
        raise ExportError(
            f"The inference forward read a tensor or a tuple by name, at {error_line(cause)}. If "
            f"that is its batch, give the inputs of signature {signature.name!r} the names that it "
            "reads, such as inputs={'image': tf.TensorSpec(...)}."
        ) from None
    named: dict[str, tf.Tensor] = {}
    _add_outputs("", outputs(predictions) if callable(outputs) else predictions, named)
    if outputs is not None and not callable(outputs):
        if missing := [key for key in outputs if key not in named]:
            raise ExportError(
                f"The model has no output {missing[0]!r}. Its outputs are {', '.join(named)}."
            )
        named = {key: named[key] for key in outputs}
    if not named:
        raise ExportError("The inference forward returned nothing. It has to return predictions.")
    for key in named:
        if key in signature.specs:
            raise ExportError(
                f"Output {key!r} has the name of an input of signature {signature.name!r}; "
                "converters (tf2onnx) confuse the two. Rename or drop it, for instance with "
                f"outputs=lambda p: {{'new_name': p[{key!r}], ...}}."
            )
    return named


def _add_outputs(name: str, value: Any, named: dict[str, tf.Tensor]) -> None:
    """Adds the tensors of nested predictions to `named`, except None."""
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        for key, one in value.items():
            _add_outputs(f"{name}/{key}" if name else str(key), one, named)
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            _add_outputs(f"{name or 'output'}_{index}", one, named)
    elif value is not None:
        name = name or "output"
        if name in named:
            raise ExportError(f"Two outputs are named {name!r}. Rename one (outputs=function).")
        if isinstance(value, tf.RaggedTensor | tf.SparseTensor | tf.IndexedSlices):
            raise ExportError(
                f"Output {name!r} is a {type(value).__name__}, but signatures return tensors. "
                "Convert it (to_tensor, tf.sparse.to_dense) in the model or with outputs=function."
            )
        tensor = tf.convert_to_tensor(value)
        half = tensor.dtype in (tf.float16, tf.bfloat16)
        named[name] = tf.cast(tensor, tf.float32) if half else tensor
