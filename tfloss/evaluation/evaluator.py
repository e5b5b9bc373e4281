"""Runs the inference forward over a data set, each example exactly once.

    Evaluator(model, {"accuracy": accuracy}).run(dataset)       # {"accuracy": 0.98}

A batch is split over the replicas on the host. The predictions are concatenated in the order of the
data set, and metrics get whole batches. So metrics get the same values on 1 and on 4 replicas, the
last, shorter batch included. A batch with fewer examples than replicas runs on one replica.

With several workers, each evaluates the whole data set on one device. Nothing is communicated, and
it takes as long as with one worker. The results are those of the first worker.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import count, named_leaves, split
from tfloss.data.distributed import Data, as_dataset
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError, MetricError, ModelError
from tfloss.evaluation.metrics import (
    BoundMetric,
    HostMetric,
    check_metric,
    flat_results,
    metric_error,
)
from tfloss.forward.context import forward_context
from tfloss.forward.losses import LossWeights, collect


class Evaluator:
    """Evaluates one model with one set of metrics. It is traced once and can run many times.

    Attributes:
      model: The model.
      metrics: The metrics, by name.
      losses: Whether validation losses are computed.
      weights: Weights of the validation losses.
      strategy: Strategy in whose scope the evaluator was created.
    """

    def __init__(
        self,
        model: keras.Model,
        metrics: Mapping[str, BoundMetric | HostMetric],
        *,
        losses: bool = False,
        loss_weights: LossWeights | None = None,
    ):
        """Creates an evaluator for the current strategy. Runs on the host.

        Args:
          model: Model whose `model(batch, training=False)` returns predictions. The first
            dimension of each tensor is that of the batch.
          metrics: Metrics by name, made by `tfloss.metric(...)` or with the methods of
            `HostMetric`.
          losses: Whether to run the training forward too, for validation losses; see `run`.
          loss_weights: Weights for `losses/total`.

        Raises:
          TypeError: A metric is neither.
        """
        for name, metric in metrics.items():
            check_metric(name, metric)
        self.model = model
        self.metrics = dict(metrics)
        self.losses = losses
        self.weights = loss_weights or LossWeights(None)
        self.strategy = tf.distribute.get_strategy()
        one_worker = worker_position(self.strategy)[1] == 1
        self._parts = self.strategy.num_replicas_in_sync if one_worker else 1
        self._bound = {
            k: m.outside_scope() for k, m in metrics.items() if isinstance(m, BoundMetric)
        }
        self._host = {k: m for k, m in metrics.items() if not isinstance(m, BoundMetric)}
        self._predict = tf.function(self._forward, autograph=False, reduce_retracing=True)
        self._loss_names: list[str] = []

    def run(self, data: Data, step: int = 0) -> dict[str, float]:
        """Evaluates a data set. Runs on the host.

        Validation losses are those of the training forward, but no state changes:
        BatchNormalization uses the statistics of the batch and keeps its moving averages, and
        Dropout is active, with the same mask in every call. Each loss is the mean over batches,
        weighted by their numbers of examples.

        Args:
          data: Finite data set of batches, or a function that returns one.
          step: Value of `tfloss.current_step()` in the forward pass.

        Returns:
          `{metric: value}` and, with losses, `{"losses/<name>": value}`.

        Raises:
          DataError: The data set is empty or infinite, or the batch size is ambiguous.
          MetricError: A metric failed on a batch. The message describes batch and predictions.
          ModelError: The predictions of the replicas can't be concatenated.
        """
        dataset = as_dataset(data, self.strategy)
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError(
                "Can't evaluate on an infinite data set. Limit it, for example with .take(n)."
            )
        options = tf.data.Options()
        options.autotune.enabled = False  # closing the iterator would wait for its thread
        self._reset_metrics()
        sums: dict[str, float] = collections.defaultdict(float)
        examples = 0
        for batch in dataset.with_options(options):
            parts = split(batch, self._parts)
            sizes = [int(count(part)) for part in parts]
            predictions, losses = self._predict_parts(batch, parts, step)
            self._update_host_metrics(batch, predictions)
            for size, values in zip(sizes, losses, strict=True):
                for name, value in zip(self._loss_names, values.numpy().tolist(), strict=True):
                    sums[name] += size * value
            examples += sum(sizes)
        if not examples:
            raise DataError("The data set to evaluate on is empty.")
        return self._results() | {f"losses/{name}": v / examples for name, v in sums.items()}

    def _reset_metrics(self) -> None:
        for metric in self._host.values():
            reset: Callable[[], None] | None = getattr(metric, "reset", None)
            if reset is not None:
                reset()
        for bound in self._bound.values():
            bound.metric.reset_state()

    def _results(self) -> dict[str, float]:
        """Returns the flat results, in the order in which the metrics were given."""
        results: dict[str, float] = {}
        for name in self.metrics:
            source = self._bound[name].metric if name in self._bound else self._host[name]
            results |= flat_results(name, source.result())
        return results

    def _update_host_metrics(self, batch: Any, predictions: Any) -> None:
        for name, metric in self._host.items():
            try:
                metric.update(_to_numpy(batch), _to_numpy(predictions))
            except Exception as error:
                raise metric_error(name, error, batch, predictions) from error

    def _predict_parts(self, batch: Any, parts: list[Any], step: int) -> tuple[Any, list[Any]]:
        """Runs the traced forward, and explains its errors."""
        try:
            return self._predict(batch, parts, tf.constant(step, tf.int64))
        except MetricError as error:
            raise error from error.__context__  # TensorFlow has dropped the cause
        except tf.errors.InvalidArgumentError as error:
            if not _upstream.caused_by_unequal_shapes_in_concat(error):
                raise
            raise ModelError(
                "The predictions of the replicas can't be concatenated: their shapes differ in "
                "more than the first dimension. Pad them to a size that doesn't depend on the "
                f"examples in the batch. TensorFlow's message: {str(error).splitlines()[-1]}"
            ) from None

    def _forward(
        self, batch: Any, parts: list[Any], step: tf.Tensor
    ) -> tuple[Any, list[tf.Tensor]]:
        """Returns the predictions and the losses of each part. Traced, cross-replica."""
        sizes = [count(part) for part in parts]
        total = sum(sizes[1:], sizes[0])

        def replica(part: Any, size: Any) -> tuple[Any, tf.Tensor]:
            example_weight = 1.0 if len(parts) == 1 else size / total
            with _upstream.inputs_untouched(self.model):
                with forward_context(step, recording=False) as context, context.silent():
                    predictions = self.model(part, training=False)
                _check_predictions(predictions)
                return predictions, self._training_losses(part, step, example_weight)

        if len(parts) == 1:
            predictions, one = replica(parts[0], sizes[0])
            losses = [one]
        else:
            predictions, losses = self._run_replicas(replica, parts, sizes)
        for name, metric in self._bound.items():
            try:
                metric(batch, predictions)
            except Exception as error:
                raise metric_error(name, error, batch, predictions) from error
        return predictions, losses

    def _run_replicas(
        self, replica: Callable[[Any, Any], Any], parts: list[Any], sizes: list[Any]
    ) -> tuple[Any, list[tf.Tensor]]:
        def run_part() -> Any:
            context = tf.distribute.get_replica_context()
            index = int(tf.get_static_value(context.replica_id_in_sync_group))
            return replica(parts[index], sizes[index])

        predictions, losses = self.strategy.run(run_part)
        local = self.strategy.experimental_local_results
        flat = [local(x) for x in tf.nest.flatten(predictions)]
        joined = [None if each[0] is None else tf.concat(list(each), 0) for each in flat]
        return tf.nest.pack_sequence_as(predictions, joined), list(local(losses))

    def _training_losses(self, part: Any, step: tf.Tensor, example_weight: Any) -> tf.Tensor:
        """Returns the losses of the training forward, without changing state. Replica code."""
        if not self.losses:
            return tf.zeros([0])
        if not isinstance(example_weight, float):
            example_weight = tf.cast(example_weight, tf.float32)
        with keras.StatelessScope(), forward_context(step, False, example_weight) as context:
            returned = self.model(part, training=True)
            losses = collect(returned, context, self.model.trainable_variables)
        weighted = list(self.weights.apply(losses, step).values())
        named = {**losses, "total": sum(weighted[1:], weighted[0])}
        self._loss_names = list(named)
        return tf.stack(list(named.values()))


def _check_predictions(predictions: Any) -> None:
    """Raises ModelError for a scalar, which can't be split or concatenated by examples."""
    for path, leaf in named_leaves(predictions):
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            raise ModelError(
                f"The prediction {path or 'of the model'} is a scalar. Every tensor that "
                "model(batch, training=False) returns must have the examples as first dimension."
            )


def _to_numpy(nest: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy() if isinstance(x, tf.Tensor) else x, nest)
