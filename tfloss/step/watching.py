"""Norms and histograms of gradients, weights and updates, and how losses share them. Traced.

`hooks.Watch` asks for them at its steps, which are traced apart. So nothing of this is in the other
steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss.optimizers.sparse_gradients import in_form
from tfloss.optimizers.variable_globs import matches
from tfloss.step.backward import BackwardTrace, tf_variables
from tfloss.step.gradients_by_loss import LossGradientRequest, Place
from tfloss.step.overwritten_variables import is_overwritten
from tfloss.step.update import Reduced
from tfloss.step.watched import BUCKETS, Watched, WatchedNames, WatchRequest

_SMALL = 2**16  # elements; larger tensors are not stacked


class Watching:
    """Watches one `minimize` call. Cross-replica, traced.

    Args:
      request: What to watch.
      strategy: The strategy that the step runs under.
      model: The model.
      variables: `{group: variables that it trains}`.
    """

    def __init__(
        self,
        request: WatchRequest,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        variables: Mapping[str, Sequence[Any]],
    ):
        self._request, self._strategy, self._variables = request, strategy, variables
        self._places: list[Place] = [
            (group, index)
            for group, mine in variables.items()
            for index, one in enumerate(mine)
            if any(matches(glob, one, model) for glob in request.variables)
            and not is_overwritten(one)
        ]
        self._before: dict[Place, tf.Tensor] = {}

    def requests(self) -> list[LossGradientRequest]:
        """Returns the gradients of single losses that it needs: one request, or none."""
        if not self._request.shared:
            return []
        return [LossGradientRequest("Watch", list, self._request.shared, required=False)]

    def read(self, trace: BackwardTrace) -> None:
        """Reads the variables before the update.

        Args:
          trace: What is known of the passes.
        """
        shared = trace.by_loss.variables if self._request.shared else ()
        self._before = self._values([*self._places, *shared])

    def watched(
        self, trace: BackwardTrace, reduced: Reduced, due: Sequence[str]
    ) -> tuple[list[tf.Tensor], WatchedNames]:
        """Returns what was watched, after the update: `Watched.tensors`, and the names.

        Args:
          trace: What is known of the passes.
          reduced: The reduced gradients.
          due: The groups whose gradients these are.
        """
        after = self._values(list(self._before))
        update = {place: after[place] - value for place, value in self._before.items()}
        gradients = {
            (group, index): gradient
            for group, mine in zip(due, self._first(reduced.gradients.weights), strict=True)
            for index, gradient in zip(trace.spec.reached[group], mine, strict=True)
        }
        triples = [self._triple(place, gradients, update) for place in self._places]
        norms = [[_norm(one) for one in triple] for triple in triples]
        parts = triples if self._request.histograms else []
        ranges, counts = _histograms([one for triple in parts for one in triple])
        names = WatchedNames(
            tuple(str(self._variables[group][index].path) for group, index in self._places),
            trace.spec.losses,
        )
        watched = Watched(
            names,
            tf.reshape(tf.stack(norms) if norms else tf.zeros([0]), [-1, 3]),
            tf.reshape(ranges, [-1, 3, 2]),
            tf.reshape(counts, [-1, 3, BUCKETS]),
            *self._compared(trace, reduced, update),
        )
        return watched.tensors(), names

    def _triple(
        self, place: Place, gradients: Mapping[Place, Any], update: Mapping[Place, tf.Tensor]
    ) -> list[tf.Tensor]:
        """The gradient, the update and the weight of a variable. What is not there is 0."""
        group, index = place
        weight = self._before[place]
        gradient = gradients.get(place)
        if gradient is not None:
            gradient = in_form(gradient, self._variables[group][index], "dense")
        found = [tf.zeros_like(weight) if gradient is None else gradient, update[place], weight]
        return [_real(one) for one in found]

    def _compared(
        self, trace: BackwardTrace, reduced: Reduced, update: Mapping[Place, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`Watched.products` and `Watched.descent`."""
        losses = trace.spec.losses
        nothing = tf.zeros([len(losses)] * 2), tf.zeros([len(losses)])
        if not self._request.shared:
            return nothing
        by_loss, request = trace.by_loss, len(trace.by_loss.parts) - 1  # the last one
        found = by_loss.products(reduced.products, request)
        if found is None:
            return nothing
        mine, variables = by_loss.parts[request]
        each = self._first(reduced.gradients.by_loss)
        descent = [
            tf.add_n(
                [
                    tf.reduce_sum(_real(each[loss][i]) * _real(update[by_loss.variables[i]]))
                    for i in variables
                ]
            )
            for loss in mine
        ]
        place = tf.one_hot([losses.index(name) for name in found.losses], len(losses))
        products = tf.matmul(place, tf.matmul(found.products, place), transpose_a=True)
        return products, tf.linalg.matvec(place, tf.stack(descent), transpose_a=True)

    def _values(self, places: Sequence[Place]) -> dict[Place, tf.Tensor]:
        """The values of variables now, on the first replica."""
        local = self._strategy.experimental_local_results
        return {
            (group, index): tf.identity(local(one)[0].read_value())
            for group, index in places
            for one in tf_variables([self._variables[group][index]])
        }

    def _first(self, nested: list[list[Any]]) -> list[list[Any]]:
        """The gradients of the first replica."""
        local = self._strategy.experimental_local_results
        return [[local(one)[0] for one in each] for each in nested]


def _real(value: tf.Tensor) -> tf.Tensor:
    """Real and imaginary parts of complex numbers, in float32."""
    if value.dtype.is_complex:
        value = tf.stack([tf.math.real(value), tf.math.imag(value)])
    return tf.cast(value, tf.float32)


def _norm(value: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(value)))


def _histograms(values: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """The ranges of the elements of tensors, float32 [n, 2], and their counts, int32 [n, BUCKETS].

    Small tensors of one size are counted together, since each op takes longer than their elements.
    Elements that are not finite, as in a step that is skipped, count as 0.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, value in enumerate(values):
        size = value.shape.num_elements()
        groups.setdefault((size,) if size <= _SMALL else (size, number), []).append(number)
    limits, counts = [tf.zeros([0, 2])], [tf.zeros([0, BUCKETS], tf.int32)]
    for members in groups.values():
        rows = tf.stack([tf.reshape(values[number], [-1]) for number in members])
        rows = tf.where(tf.math.is_finite(rows), rows, 0.0)
        low, high = tf.reduce_min(rows, 1, keepdims=True), tf.reduce_max(rows, 1, keepdims=True)
        width = tf.where(low < high, high - low, 1.0)
        bucket = tf.minimum((rows - low) / width * BUCKETS, BUCKETS - 1.0)
        first = tf.range(len(members))[:, tf.newaxis] * BUCKETS
        found = tf.raw_ops.DenseBincount(
            input=tf.reshape(tf.cast(bucket, tf.int32) + first, [-1]),
            size=len(members) * BUCKETS,
            weights=tf.zeros([0], tf.int32),
        )
        limits.append(tf.concat([low, high], 1))
        counts.append(tf.reshape(found, [-1, BUCKETS]))
    order = [number for members in groups.values() for number in members]
    back = sorted(range(len(order)), key=order.__getitem__)
    places = tf.constant(back, tf.int32)
    return tf.gather(tf.concat(limits, 0), places), tf.gather(tf.concat(counts, 0), places)
