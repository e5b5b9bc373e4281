"""Evaluation: the inference forward over a data set, every example exactly once.

    accuracy = tfloss.metric(
        keras.metrics.SparseCategoricalAccuracy(),
        lambda batch, predictions: (batch["label"], predictions["probabilities"]),
    )
    evaluate(model, dataset, {"accuracy": accuracy})        # {"accuracy": 0.98}

A batch is split over the replicas on the host, the predictions are put together again in
the order of the data set, and metrics see whole batches: on 1 and on 4 replicas they see the
same thing, last short batch included. A batch with fewer examples than replicas runs on one.
With several workers each of them evaluates the whole data set, on one device: nothing is sent, and
it takes as long as on one. Their results are the first worker's.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import count, named_leaves, split
from tfloss.data.distributed import Data, as_dataset
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError, MetricError, ModelError
from tfloss.forward.context import forward_context
from tfloss.forward.losses import LossWeights, collect


@runtime_checkable
class HostMetric(Protocol):
    """A metric in plain Python, for what does not fit a Keras metric (mAP, for instance).

    `update(batch, predictions)` gets nests of numpy arrays, `result()` returns a number or
    a mapping of numbers. `reset()`, if there is one, is called before each evaluation.
    """

    def update(self, batch: Any, predictions: Any) -> None: ...

    def result(self) -> Any: ...


class BoundMetric:
    """A Keras metric and the function that picks its arguments. Made by `tfloss.metric`."""

    def __init__(self, metric: keras.Metric, arguments: Callable[[Any, Any], Any]):
        self.metric = metric
        self.arguments = arguments

    def __call__(self, batch: Any, predictions: Any) -> None:
        """Updates the metric. Traced, on whole batches."""
        arguments = self.arguments(batch, predictions)
        if isinstance(arguments, Mapping):
            self.metric.update_state(**arguments)
        elif isinstance(arguments, tuple):
            self.metric.update_state(*arguments)
        else:
            self.metric.update_state(arguments)


def metric(metric: keras.Metric, arguments: Callable[[Any, Any], Any]) -> BoundMetric:
    """Binds a Keras metric to a batch and its predictions.

    Args:
      metric: any Keras metric.
      arguments: `(batch, predictions) -> ` the arguments of `metric.update_state`: a tuple
        (positional), a mapping (by name) or one tensor. Traced, on whole batches.
    """
    if not isinstance(metric, keras.Metric):
        raise TypeError(f"metric must be a keras.Metric, got {type(metric).__name__}.")
    return BoundMetric(metric, arguments)


class Evaluator:
    """Evaluates one model with one set of metrics; traced once, used many times.

    Args:
      model: `model(batch, training=False)` returns predictions whose tensors have the batch
        as first dimension.
      metrics: `{name: tfloss.metric(...) or HostMetric}`.
      losses: also run the training forward for validation losses; see `run`.
      loss_weights: for `losses/total`.

    Raises:
      TypeError: a metric that is neither.
    """

    def __init__(
        self,
        model: keras.Model,
        metrics: Mapping[str, BoundMetric | HostMetric],
        *,
        losses: bool = False,
        loss_weights: LossWeights | None = None,
    ):
        for name, one in metrics.items():
            if not isinstance(one, BoundMetric | HostMetric):
                hint = " Bind it with tfloss.metric(...)." if isinstance(one, keras.Metric) else ""
                raise TypeError(
                    f"Metric {name!r} must be made by tfloss.metric(...) or have update() and "
                    f"result(), got {type(one).__name__}.{hint}"
                )
        self.model = model
        self.metrics = dict(metrics)
        self.losses = losses
        self.weights = loss_weights or LossWeights(None)
        self.strategy = tf.distribute.get_strategy()
        alone = worker_position(self.strategy)[1] == 1
        self._parts = self.strategy.num_replicas_in_sync if alone else 1
        self._bound = {
            k: _outside_scope(m) for k, m in metrics.items() if isinstance(m, BoundMetric)
        }
        self._predict = tf.function(self._forward, autograph=False, reduce_retracing=True)
        self._loss_names: list[str] = []

    def run(self, data: Data, step: int = 0) -> dict[str, float]:
        """Goes through `data` once. Host code.

        Validation losses are those of the training forward, without any change of state:
        BatchNormalization uses the statistics of the batch and keeps its averages, and
        Dropout is active, with a mask that is the same in every call. Each is the mean over
        batches weighted by their numbers of examples.

        Args:
          data: a finite data set of batches (or a function that makes it).
          step: what `tfloss.current_step()` says in the forward pass.

        Returns:
          `{metric: value}` and, with losses, `{"losses/<name>": value}`.

        Raises:
          DataError: an empty or endless data set, or one whose batch size is not clear.
          MetricError: a metric failed on a batch; it says what batch and predictions hold.
        """
        dataset = as_dataset(data, self.strategy)
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError("Can't evaluate on a data set that repeats for ever: .take(n) it.")
        options = tf.data.Options()
        options.autotune.enabled = False  # closing the iterator would wait for its thread
        for one in self.metrics.values():
            _reset(one)
        for one in self._bound.values():
            one.metric.reset_state()
        sums: dict[str, float] = collections.defaultdict(float)
        examples = 0
        for batch in dataset.with_options(options):
            parts = split(batch, self._parts)
            sizes = [int(count(part)) for part in parts]
            try:
                predictions, losses = self._predict(batch, parts, tf.constant(step, tf.int64))
            except MetricError as error:
                raise error from error.__context__  # TensorFlow forgets the cause on the way
            except tf.errors.InvalidArgumentError as error:
                if not _upstream.caused_by_unequal_shapes_in_concat(error):
                    raise
                raise ModelError(
                    "The replicas' predictions can't be put together: their shapes differ in more "
                    "than the first dimension. Pad them to a size that doesn't depend on the "
                    f"examples in the batch. TensorFlow says: {str(error).splitlines()[-1]}"
                ) from None
            for name, one in self.metrics.items():
                if not isinstance(one, BoundMetric):
                    try:
                        one.update(_to_numpy(batch), _to_numpy(predictions))
                    except Exception as error:
                        raise _metric_error(name, error, batch, predictions) from error
            for size, values in zip(sizes, losses, strict=True):
                for name, value in zip(self._loss_names, values.numpy().tolist(), strict=True):
                    sums[name] += size * value
            examples += sum(sizes)
        if not examples:
            raise DataError("The data set to evaluate on is empty.")
        results: dict[str, float] = {}
        for name, one in self.metrics.items():
            source = self._bound[name].metric if isinstance(one, BoundMetric) else one
            _flatten_result(name, source.result(), results)
        return results | {f"losses/{name}": value / examples for name, value in sums.items()}

    def _forward(
        self, batch: Any, parts: list[Any], step: tf.Tensor
    ) -> tuple[Any, list[tf.Tensor]]:
        """Traced, cross-replica: whole predictions and the losses of each part."""

        numbers = [count(part) for part in parts]
        total = sum(numbers[1:], numbers[0])

        def replica(part, number):
            share = 1.0 if len(parts) == 1 else number / total
            with _upstream.inputs_untouched(self.model):
                with forward_context(step, recording=False) as context, context.silent():
                    predictions = self.model(part, training=False)
                _check_predictions(predictions)
                return predictions, self._training_losses(part, step, share)

        if len(parts) == 1:
            predictions, losses = replica(parts[0], numbers[0])
            each = [losses]
        else:
            predictions, losses = self._run(replica, parts, numbers)
            each = list(losses)
        for name, one in self._bound.items():
            try:
                one(batch, predictions)
            except Exception as error:
                raise _metric_error(name, error, batch, predictions) from error
        return predictions, each

    def _run(self, replica: Callable, parts: list[Any], numbers: list[Any]) -> tuple[Any, tuple]:
        def chosen():
            context = tf.distribute.get_replica_context()
            index = int(tf.get_static_value(context.replica_id_in_sync_group))
            return replica(parts[index], numbers[index])

        predictions, losses = self.strategy.run(chosen)
        local = self.strategy.experimental_local_results
        flat = [local(x) for x in tf.nest.flatten(predictions)]
        whole = [None if each[0] is None else tf.concat(list(each), 0) for each in flat]
        return tf.nest.pack_sequence_as(predictions, whole), local(losses)

    def _training_losses(self, part: Any, step: tf.Tensor, share: Any) -> tf.Tensor:
        """Replica code: the losses of the training forward, which changes no state."""
        if not self.losses:
            return tf.zeros([0])
        if not isinstance(share, float):
            share = tf.cast(share, tf.float32)
        with keras.StatelessScope(), forward_context(step, False, share) as context:
            returned = self.model(part, training=True)
            losses = collect(returned, context, self.model.trainable_variables)
        weighted = list(self.weights.apply(losses, step).values())
        named = {**losses, "total": sum(weighted[1:], weighted[0])}
        self._loss_names = list(named)
        return tf.stack(list(named.values()))


class Evaluators:
    """The evaluators of one model, each traced once. Host code.

    Args:
      model, loss_weights: see `Evaluator`.
      strategy: in whose scope they are made.
    """

    MOST = 8  # each holds its metrics and a trace

    def __init__(
        self, model: keras.Model, loss_weights: LossWeights, strategy: tf.distribute.Strategy
    ):
        self._model, self._weights, self._strategy = model, loss_weights, strategy
        self._known: dict[tuple, Evaluator] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(
        self, metrics: Mapping[str, BoundMetric | HostMetric], losses: bool, signature: tuple
    ) -> Evaluator:
        """The one of these metric objects.

        Args:
          signature: of what is frozen in a trace.
        """
        key = (*((name, id(one)) for name, one in metrics.items()), losses, signature)
        if key not in self._known:
            while len(self._known) >= self.MOST:
                self._known.pop(next(iter(self._known)))
            with self._strategy.scope():
                self._known[key] = Evaluator(
                    self._model, metrics, losses=losses, loss_weights=self._weights
                )
        return self._known[key]


def _check_predictions(predictions: Any) -> None:
    """Raises ModelError for a scalar: a batch cut in two has two of it, and no examples."""
    for path, leaf in named_leaves(predictions):
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            raise ModelError(
                f"The prediction {path or 'of the model'} is a scalar. Every tensor that "
                "model(batch, training=False) returns must have the examples as first dimension."
            )


def _outside_scope(bound: BoundMetric) -> BoundMetric:
    """The metric itself, or a copy if its variables are replicated.

    Metrics are updated with whole batches, outside of the replicas.
    """
    if not any(
        isinstance(v.value, tf.distribute.DistributedValues) for v in bound.metric.variables
    ):
        return bound
    copy = type(bound.metric).from_config(bound.metric.get_config())
    return BoundMetric(copy, bound.arguments)


def _reset(one: Any) -> None:
    if not isinstance(one, BoundMetric) and hasattr(one, "reset"):
        one.reset()


def _metric_error(name: str, error: Exception, batch: Any, predictions: Any) -> MetricError:
    return MetricError(
        f"Metric {name!r} failed with {type(error).__name__}: {error}\n"
        f"  batch: {_described(batch)}\n"
        f"  predictions: {_described(predictions)}"
    )


def _described(nest: Any) -> str:
    """`{'image': float32 [None, 28, 28], 'boxes': (...)}`: keys, dtypes and shapes of a nest."""
    if isinstance(nest, Mapping):
        return "{" + ", ".join(f"{k!r}: {_described(v)}" for k, v in nest.items()) + "}"
    if isinstance(nest, tuple | list):
        names = [f"{name}=" for name in getattr(nest, "_fields", ())] or [""] * len(nest)
        parts = [name + _described(v) for name, v in zip(names, nest, strict=True)]
        return "(" + ", ".join(parts) + ")" if isinstance(nest, tuple) else f"[{', '.join(parts)}]"
    dtype, shape = getattr(nest, "dtype", None), getattr(nest, "shape", None)
    if dtype is None or shape is None:
        return type(nest).__name__
    return f"{tf.as_dtype(dtype).name} {[*shape] if shape.rank is not None else 'of any rank'}"


def _to_numpy(nest: Any) -> Any:
    return tf.nest.map_structure(
        lambda x: x.numpy() if isinstance(x, tf.Tensor) else x,
        nest,
    )


def _flatten_result(name: str, value: Any, into: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, one in value.items():
            _flatten_result(f"{name}/{key}", one, into)
        return
    array = np.asarray(value)
    if array.ndim:
        for index, one in enumerate(array):
            _flatten_result(f"{name}/{index}", one, into)
    else:
        into[name] = float(array)
