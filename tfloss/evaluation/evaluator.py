"""Runs the inference forward over a data set, each example exactly once.

    Evaluator(model, {"accuracy": accuracy}).run(dataset)       # {"accuracy": 0.98}

A batch is split over the replicas on the host. The predictions are concatenated in the order of the
data set, and metrics get whole batches. So metrics get the same values on 1 and on 4 replicas, the
last, shorter batch included. A batch with fewer examples than replicas runs on one replica.

Each forward runs only if something needs it: the inference forward for metrics that use
predictions, and the training forward for validation losses.

With several workers, each evaluates the whole data set on one device. Nothing is communicated, and
it takes as long as with one worker. The results are those of the first worker.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common import activity
from tfloss.common.logger import ChiefLogger
from tfloss.data.batch_division import split
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.batches import named_leaves
from tfloss.data.distributed import Data, as_dataset
from tfloss.data.seekable import Seekable
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError, MetricError, ModelError
from tfloss.evaluation.kept_state import KeptState
from tfloss.evaluation.keras_updates import KerasUpdate
from tfloss.evaluation.long_evaluation import LongEvaluation
from tfloss.evaluation.loss_means import LossMeans
from tfloss.evaluation.metrics import (
    BoundMetric,
    HostMetric,
    check_metrics,
    flat_results,
    metric_error,
    own_names,
    reset,
    takes_predictions,
)
from tfloss.forward.context import forward_context
from tfloss.forward.losses import LossWeights, collect
from tfloss.inspect.traceback_filtering import unwrapped_keras_errors
from tfloss.step.forward_errors import explained_errors


def finite_dataset(data: Data, strategy: tf.distribute.Strategy) -> "tf.data.Dataset[Any]":
    """Returns the `tf.data.Dataset` of an evaluation. Host code.

    Args:
      data: Data set of batches, or a function that returns one.
      strategy: Strategy whose workers read it.

    Raises:
      DataError: `data` is no data set, or known to be infinite.
    """
    dataset = as_dataset(data, strategy)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        cure = (
            "Make the Source with epochs=1, and shuffle=False."
            if isinstance(data, Seekable)
            else "Leave .repeat() out, or limit it with .take(n)."
        )
        raise DataError(f"Can't evaluate on an infinite data set. {cure}")
    return dataset


class Evaluator:
    """Evaluates one model with one set of metrics. It is traced once and can run many times.

    Attributes:
      model: The model.
      metrics: The metrics, by name.
      losses: Whether validation losses are computed.
      weights: Weights of the validation losses.
      batch_layout: What counts as an example.
      strategy: Strategy in whose scope the evaluator was created.
    """

    def __init__(
        self,
        model: keras.Model,
        metrics: Mapping[str, BoundMetric | HostMetric],
        *,
        losses: bool = False,
        loss_weights: LossWeights | None = None,
        batch_layout: BatchLayout = ROWS_ARE_EXAMPLES,
    ):
        """Creates an evaluator for the current strategy. Runs on the host.

        Args:
          model: Model whose `model(batch, training=False)` returns predictions. The first
            dimension of each tensor is that of the batch.
          metrics: Metrics by name, made by `tfloss.metric(...)` or with the methods of
            `HostMetric`.
          losses: Whether to run the training forward too, for validation losses; see `run`.
          loss_weights: Weights for `losses/total`.
          batch_layout: Which tensors of a batch hold examples, and what counts as one.

        Raises:
          TypeError: A metric is neither, or can't be reset.
          ValueError: Two names stand for one metric object.
        """
        self.model = model
        self.metrics = check_metrics(metrics)
        self.losses = losses
        self.weights = loss_weights or LossWeights(None)
        self.batch_layout = batch_layout
        self.strategy = tf.distribute.get_strategy()
        one_worker = worker_position(self.strategy)[1] == 1
        self._parts = self.strategy.num_replicas_in_sync if one_worker else 1
        self._keras = {
            k: KerasUpdate(k, m) for k, m in metrics.items() if isinstance(m, BoundMetric)
        }
        self._host = {k: m for k, m in metrics.items() if not isinstance(m, BoundMetric)}
        function = functools.partial(tf.function, autograph=False, reduce_retracing=True)
        self._run_forwards = {
            (predict, losses): KeptState(
                function(functools.partial(self._forwards, predict=predict, losses=losses))
            )
            for predict, losses in ((True, True), (True, False), (False, True))
        }
        self._update = function(self._update_keras_metrics)
        self._needs_predictions: bool | None = None  # known from the first batch on
        self._loss_names: list[str] = []

    @activity.during("evaluating")
    def run(self, data: Data, step: int = 0) -> dict[str, float]:
        """Evaluates a data set. Runs on the host.

        All state is afterwards as it was before, that of tables and of the model's raw variables
        too. The states of an RNN with `stateful=True` go on from batch to batch meanwhile.
        Validation losses are those of the training forward:
        BatchNormalization uses the statistics of the batch and keeps its moving averages, and
        Dropout is active, with the same mask in every call. Each loss is the mean over batches,
        weighted by their numbers of examples. If nobody has declared what an example is, and
        first dimensions differ in other proportions from batch to batch, every batch counts once,
        and a warning says so.

        Args:
          data: Finite data set of batches, or a function that returns one.
          step: Value of `tfloss.current_step()` in the forward pass.

        Returns:
          `{metric: value}` and, with losses, `{"losses/<name>": value}`.

        Raises:
          DataError: The data set is empty or infinite, or a batch can't be divided over replicas.
          MetricError: A metric failed on a batch. The message describes batch and predictions.
          ModelError: The predictions of the replicas can't be concatenated.
        """
        dataset = finite_dataset(data, self.strategy)
        options = tf.data.Options()
        options.autotune.enabled = False  # closing the iterator would wait for its thread
        self._reset_metrics()
        for forwards in self._run_forwards.values():
            forwards.begin()
        means, layout = LossMeans(self.batch_layout), self.batch_layout
        compared = _FirstAndOther()
        chief = ChiefLogger(worker_position(self.strategy)[0] == 0)
        progress = LongEvaluation(dataset, chief)
        for batch in dataset.with_options(options):
            parts = split(layout, batch, self._parts)
            predictions, losses = self._evaluate_batch(batch, parts, step)
            if self._keras:
                compared.add(layout.count(batch), (batch, predictions))
            counts = [layout.count(part) for part in parts]
            values = [one.numpy().tolist() for one in losses] or [[] for _ in parts]
            means.add(layout.sizes(batch), counts, values)
            progress.batch_done()
        found = means.result(self._loss_names if self.losses else [])
        results = self._results()
        if compared.other is not None:
            for update in self._keras.values():
                update.check_sizes(compared.first, compared.other)
        return results | {f"losses/{name}": value for name, value in found.items()}

    def _reset_metrics(self) -> None:
        for metric in self._host.values():
            reset(metric)
        for update in self._keras.values():
            update.metric.reset_state()

    def _results(self) -> dict[str, float]:
        """Returns the flat results, in the order in which the metrics were given."""
        results: dict[str, float] = {}
        for name in self.metrics:
            source = self._keras[name].metric if name in self._keras else self._host[name]
            try:
                value = source.result()
                prefix = name if own_names(self.metrics[name]) is None else ""
                results |= flat_results(prefix, value)
            except Exception as error:
                raise MetricError(
                    f"Metric {name!r} failed in result() with {type(error).__name__}: {error}. It "
                    "must return a number, an array or a mapping of them."
                ) from error
        return results

    def _evaluate_batch(self, batch: Any, parts: list[Any], step: int) -> tuple[Any, list[Any]]:
        """Adds a batch to all metrics.

        Returns:
          The predictions, None if no metric needs them; the losses of each part, [] without losses.
        """
        if self._needs_predictions is None:
            self._needs_predictions = any(map(takes_predictions, self._host.values())) or any(
                update.needs_predictions(batch) for update in self._keras.values()
            )
        predictions, attached, losses = None, list[Any](), list[Any]()
        if self._needs_predictions or self.losses:
            predictions, attached, losses = self._forwards_explained(parts, step)
        if self._keras:
            predictions = _with_attached(predictions, attached)
            for update in self._keras.values():
                update.choose(batch, predictions)
            try:
                self._update(batch, predictions, attached)
            except MetricError as error:
                raise error from error.__context__  # TensorFlow has dropped the cause
        self._update_host_metrics(batch, predictions)
        return predictions, losses

    def _update_keras_metrics(self, batch: Any, predictions: Any, attached: list[Any]) -> None:
        """Adds a batch to the Keras metrics. Traced, cross-replica."""
        predictions = _with_attached(predictions, attached)
        for update in self._keras.values():
            update(batch, predictions)

    def _update_host_metrics(self, batch: Any, predictions: Any) -> None:
        for name, metric in self._host.items():
            values = [_to_numpy(batch)]
            if takes_predictions(metric):
                values.append(_to_numpy(predictions))
            try:
                metric.update(*values)
            except Exception as error:
                raise metric_error(name, error, batch, predictions) from error

    def _forwards_explained(
        self, parts: list[Any], step: int
    ) -> tuple[Any, list[Any], list[tf.Tensor]]:
        """Runs the traced forwards, and explains their errors.

        Both run in one call, unless they change state: neither may see the changes of the other.
        """
        run, arguments = self._run_forwards, (parts, tf.constant(step, tf.int64))
        predict, losses = bool(self._needs_predictions), self.losses
        try:
            if not (predict and losses and run[True, True].changes_state(*arguments)):
                return run[predict, losses](*arguments)
            predictions, attached, _ = run[True, False](*arguments)
            return predictions, attached, run[False, True](*arguments)[2]
        except tf.errors.InvalidArgumentError as error:
            if not _upstream.caused_by_unequal_shapes_in_concat(error):
                raise
            raise ModelError(
                "The predictions of the replicas can't be concatenated: their shapes differ in "
                "more than the first dimension. Pad them to a size that doesn't depend on the "
                f"examples in the batch. TensorFlow's message: {str(error).splitlines()[-1]}"
            ) from None

    def _forwards(
        self, parts: list[Any], step: tf.Tensor, *, predict: bool, losses: bool
    ) -> tuple[Any, list[Any], list[tf.Tensor]]:
        """Runs the forwards that are needed. Traced, cross-replica.

        Returns:
          The predictions of all parts, or None; for each tensor among them, what Keras has attached
          to it; the losses of each part, or [].
        """
        sizes = [self.batch_layout.count(part) for part in parts]

        def replica(index: int) -> tuple[tuple[Any, list[Any]], tf.Tensor]:
            example_weight = 1.0
            if len(parts) > 1:
                example_weight = sizes[index] / sum(sizes[1:], sizes[0])
            part, untouched = parts[index], _upstream.inputs_untouched(self.model)
            # Keras wraps errors in each thread that isn't told otherwise.
            with untouched, unwrapped_keras_errors(), explained_errors(part):
                predicted = self._predictions(part, step) if predict else (None, [])
                if not losses:
                    return predicted, tf.zeros([0])
                return predicted, self._training_losses(part, step, example_weight)

        if len(parts) == 1:
            (predictions, attached), one = replica(0)
            found = [one]
        else:
            (predictions, attached), found = self._run_replicas(replica)
        return predictions, attached, found if losses else []

    def _run_replicas(self, replica: Callable[[int], Any]) -> tuple[Any, list[tf.Tensor]]:
        def run_part() -> Any:
            context = tf.distribute.get_replica_context()
            return replica(int(tf.get_static_value(context.replica_id_in_sync_group)))

        predicted, losses = self.strategy.run(run_part)
        local = self.strategy.experimental_local_results
        flat = [local(x) for x in tf.nest.flatten(predicted)]
        joined = [None if each[0] is None else tf.concat(list(each), 0) for each in flat]
        return tf.nest.pack_sequence_as(predicted, joined), list(local(losses))

    def _predictions(self, part: Any, step: tf.Tensor) -> tuple[Any, list[Any]]:
        """Returns the predictions, and what Keras has attached to them. Replica code."""
        with forward_context(step, recording=False) as context, context.silent():
            predictions = self.model(part, training=False)
        _check_predictions(predictions)
        if not self._keras:
            return predictions, []
        return predictions, [_upstream.attached_to(x) for x in tf.nest.flatten(predictions)]

    def _training_losses(self, part: Any, step: tf.Tensor, example_weight: Any) -> tf.Tensor:
        """Returns the losses of the training forward, without changing state. Replica code."""
        if not isinstance(example_weight, float):
            example_weight = tf.cast(example_weight, tf.float32)
        with (
            keras.StatelessScope() as scope,
            forward_context(step, False, example_weight) as context,
        ):
            returned = self.model(part, training=True)
            losses = collect(returned, context, self.model.trainable_variables)
        for state in _upstream.rnn_states(self.model):  # goes on in the next batch
            if (value := scope.get_current_value(state)) is not None:
                state.assign(value)
        weighted = list(self.weights.apply(losses, step).values())
        named = {**losses, "total": sum(weighted[1:], weighted[0])}
        self._loss_names = list(named)
        return tf.stack(list(named.values()))


class _FirstAndOther:
    """Keeps the first batch, and the first one of another size. Host code."""

    first: Any = None
    other: Any = None

    def __init__(self) -> None:
        self._size: int | None = 0

    def add(self, size: int | None, batch: Any) -> None:
        if self.first is None:
            self.first, self._size = batch, size
        elif self.other is None and size != self._size:
            self.other = batch


def _with_attached(predictions: Any, attached: list[Any]) -> Any:
    """Attaches to tensors the masks and logits that Keras had attached to them in the model."""
    if not any(attached):
        return predictions
    leaves = zip(tf.nest.flatten(predictions), attached, strict=True)
    return tf.nest.pack_sequence_as(predictions, [_upstream.attach(*one) for one in leaves])


def _check_predictions(predictions: Any) -> None:
    """Raises ModelError for a scalar, which can't be split or concatenated by examples."""
    if predictions is None:
        raise ModelError(
            "model(batch, training=False) returned None, and the metrics need predictions. Return "
            "them if `training` is False."
        )
    for path, leaf in named_leaves(predictions):
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            raise ModelError(
                f"The prediction {path or 'of the model'} is a scalar. Every tensor that "
                "model(batch, training=False) returns must have the examples as first dimension."
            )


def _to_numpy(nest: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy() if isinstance(x, tf.Tensor) else x, nest)
