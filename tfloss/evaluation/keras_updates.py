"""Updates a Keras metric so that every example counts once. Host code, and traced.

    update = KerasUpdate("mae", metric(keras.metrics.MeanAbsoluteError(), arguments))
    update.choose(batch, predictions)          # once, eagerly, on the first batch
    update(batch, predictions)                 # for each batch, traced

Keras reduces the last dimension of most metrics. If predictions have the shape [n], this is the
dimension of the examples: the metric then is the mean over batches, and the examples of a shorter
batch count more. Such arguments are passed as [n, 1].

Whether this changes what the metric computes, and whether the parts of a batch give the same result
as the whole batch, is measured on the first batch. So the rule holds for any metric, not for a list
of known ones.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES
from tfloss.data.batches import slice_examples
from tfloss.errors import MetricError
from tfloss.evaluation.metrics import BoundMetric, flat_results, metric_error

_WEIGHTS = "sample_weight"
# A metric that counts batches is wrong by far more than this, rounding by far less.
_TOLERANCE = 1e-3

Arguments = dict[str, Any] | tuple[Any, ...]


class KerasUpdate:
    """One Keras metric in one evaluator.

    Attributes:
      metric: The Keras metric that is updated.
    """

    def __init__(self, name: str, bound: BoundMetric):
        """Creates the update of a metric. Host code, outside of the strategy's scope.

        Args:
          name: Name of the metric, for messages.
          bound: The metric, as the user made it.
        """
        own = bound.outside_scope()
        self.metric = own.metric
        self._name, self._select = name, own.arguments
        self._expand: bool | None = None if own.by_example else False
        self._checked_sizes = not own.by_example

    def needs_predictions(self, batch: Any) -> bool:
        """Returns whether the metric's arguments depend on the predictions. Host code, eager.

        Args:
          batch: A batch.
        """
        nothing = object()
        try:
            leaves = tf.nest.flatten(self._select(batch, nothing))
        except Exception:  # noqa: BLE001 - it used what can't be used
            return True
        return any(leaf is nothing for leaf in leaves)

    def __call__(self, batch: Any, predictions: Any) -> None:
        """Adds a batch to the metric. Traced, cross-replica, on whole batches.

        Args:
          batch: The batch.
          predictions: Its predictions, or None if the metric doesn't need them.

        Raises:
          MetricError: The metric failed.
        """
        try:
            self._add(self._arguments(batch, predictions), bool(self._expand))
        except Exception as error:
            raise metric_error(self._name, error, batch, predictions) from error

    def choose(self, batch: Any, predictions: Any) -> None:
        """Chooses the shape of the arguments by the first batch. Host code, eager.

        The metric is used for this and reset.

        Args:
          batch: The first batch.
          predictions: Its predictions, or None if the metric doesn't need them.

        Raises:
          MetricError: The metric failed, or examples in a shorter batch would count more.
        """
        if self._expand is not None:
            return
        try:
            whole = self._arguments(batch, predictions)
            self._check_count(whole)
            parts = self._parts(batch, predictions, whole)
            self._expand = self._should_expand(whole, parts)
            if not self._expand:
                self._check_parts([], whole, parts)
        except MetricError:
            raise
        except Exception as error:
            raise metric_error(self._name, error, batch, predictions) from error

    def check_sizes(self, first: tuple[Any, Any], other: tuple[Any, Any]) -> None:
        """Checks two batches of different sizes, once. Host code, eager.

        The first batch alone can't tell whether a metric counts batches if all of its examples
        have the same value. The metric is used for this and reset, so take its result before.

        Args:
          first: The first batch and its predictions.
          other: A batch of another size and its predictions.

        Raises:
          MetricError: Examples in a shorter batch count more.
        """
        if self._checked_sizes or self._expand:
            return
        self._checked_sizes = True
        arguments = [self._arguments(*one) for one in (first, other)]
        parts = self._parts(*other, arguments[1])
        if parts:
            self._check_parts(arguments[:1], arguments[1], parts)
        else:
            self._check_parts(arguments[1:], arguments[0], self._parts(*first, arguments[0]))

    def _arguments(self, batch: Any, predictions: Any) -> Arguments:
        found = tf.nest.map_structure(_to_tensor, self._select(batch, predictions))
        if isinstance(found, Mapping):
            return dict(cast(Mapping[str, Any], found))
        return cast(tuple[Any, ...], found) if isinstance(found, tuple) else (found,)

    def _check_count(self, arguments: Arguments) -> None:
        """Raises MetricError if the metric doesn't take these arguments."""
        signature = inspect.signature(self.metric.update_state)
        positional = () if isinstance(arguments, dict) else arguments
        named = arguments if isinstance(arguments, dict) else {}
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            count = "one value" if len(arguments) == 1 else f"{len(arguments)} values"
            raise MetricError(
                f"The function of metric {self._name!r} returned {count}, but "
                f"{type(self.metric).__name__}.update_state takes {signature} ({error}). Return a "
                "tuple, such as (labels, predictions)."
            ) from None

    def _add(self, arguments: Arguments, expand: bool) -> None:
        if expand:
            arguments = self._map_values(_expand, arguments)
        if isinstance(arguments, dict):
            self.metric.update_state(**arguments)
        else:
            self.metric.update_state(*arguments)

    def _result(self, updates: Sequence[Arguments], expand: bool = False) -> Any:
        """Returns the values of the metric after these updates alone."""
        self.metric.reset_state()
        try:
            for arguments in updates:
                self._add(arguments, expand)
            return np.array([*flat_results("", self.metric.result()).values()])
        finally:
            self.metric.reset_state()

    def _should_expand(self, whole: Arguments, parts: list[Arguments]) -> bool:
        """Returns whether [n, 1] computes the same of one batch, and the same of its parts."""
        values = tf.nest.flatten(self._map_values(lambda leaf: leaf, whole, keep_weights=False))
        if not values or any(not tf.is_tensor(x) or x.shape.rank != 1 for x in values):
            return False
        try:
            expanded = self._result([whole], True)
            if parts and not _same(expanded, self._result(parts, True)):
                return False
        except Exception:  # noqa: BLE001 - the metric can't use [n, 1]
            return False
        try:
            return _same(expanded, self._result([whole]))
        except Exception:  # noqa: BLE001 - or it needs [n, 1] for its weights
            plain = self._map_values(lambda leaf: leaf, whole, keep_weights=False)
            if len(tf.nest.flatten(plain)) == len(tf.nest.flatten(whole)):
                return False
            return _same(self._result([plain], True), self._result([plain]))

    def _parts(self, batch: Any, predictions: Any, whole: Arguments) -> list[Arguments]:
        """Returns the arguments of the first example and of the others; [] if there are no such.

        The arguments are cut where they have a first dimension, since an argument may depend on
        the batch as a whole (a rank among its examples). Scalars are computed of a part's batch.
        """
        for nest, select in ((whole, lambda part: part), ((batch, predictions), self._of_pair)):
            sizes = {int(size) for size in ROWS_ARE_EXAMPLES.sizes(nest).values()}
            if len(sizes) > 1:
                return []
            if sizes:
                bounds = ((0, 1), (1, min(sizes)))
                cuts = [_slice(nest, *one) for one in bounds if min(sizes) > 1]
                return [cast(Arguments, select(cut)) for cut in cuts]
        return []

    def _of_pair(self, pair: Any) -> Arguments:
        return self._arguments(*pair)

    def _check_parts(
        self, before: list[Arguments], whole: Arguments, parts: list[Arguments]
    ) -> None:
        if not parts:
            return
        one, two = self._result([*before, whole]), self._result([*before, *parts])
        if not _same(one, two):
            raise MetricError(
                f"Metric {self._name!r} ({type(self.metric).__name__}) does not count every "
                f"example once: a batch gives {_text(one)}, and the same examples as two batches "
                f"give {_text(two)}. So the examples of a shorter batch would count more. The "
                "arguments must have the examples as their first dimension, and the metric may "
                "reduce only the other ones. Pass labels and predictions [n] as [n, 1]: p[:, None]."
                " Instead of a mean over the batch, pass one value for each example, or {'values': "
                "mean, 'sample_weight': number of examples}. If the metric needs whole batches, "
                "write it as an object with update(), result() and reset()."
            )

    def _map_values(
        self, function: Callable[[Any], Any], arguments: Arguments, keep_weights: bool = True
    ) -> Arguments:
        """Applies a function to all tensors except for sample weights."""

        def apply(name: str, value: Any) -> Any:
            return value if name == _WEIGHTS else tf.nest.map_structure(function, value)

        if isinstance(arguments, dict):
            named = {k: v for k, v in arguments.items() if keep_weights or k != _WEIGHTS}
            return {k: apply(k, v) for k, v in named.items()}
        parameters = [*inspect.signature(self.metric.update_state).parameters]
        names = parameters + [""] * (len(arguments) - len(parameters))
        pairs = [(k, v) for k, v in zip(names, arguments, strict=False)]
        return tuple(apply(k, v) for k, v in pairs if keep_weights or k != _WEIGHTS)


def _to_tensor(leaf: Any) -> Any:
    return tf.constant(leaf) if isinstance(leaf, bool | int | float | np.ndarray) else leaf


def _expand(leaf: Any) -> Any:
    attached = _upstream.attached_to(leaf)
    expanded = {k: v if k == "mask" else tf.expand_dims(v, -1) for k, v in attached.items()}
    return _upstream.attach(tf.expand_dims(leaf, -1), expanded)


def _slice(nest: Any, start: int, stop: int) -> Any:
    """Cuts the examples of a nest, and of what Keras has attached to its tensors."""
    sliced = slice_examples(nest, start, stop)

    def attach(part: Any, leaf: Any) -> Any:
        attached = _upstream.attached_to(leaf)
        return _upstream.attach(part, {k: v[start:stop] for k, v in attached.items()})

    return tf.nest.map_structure(attach, sliced, nest)


def _same(one: Any, two: Any) -> bool:
    return one.shape == two.shape and np.allclose(
        one, two, rtol=_TOLERANCE, atol=1e-6, equal_nan=True
    )


def _text(values: Any) -> str:
    return ", ".join(f"{value:.5g}" for value in values[:4])
