"""A model that owns its losses becomes a Keras model with `fit` and `evaluate`.

net = tfloss.adapters.to_keras(model)
net.compile(optimizer)
history = net.fit(data, validation_data=test_set, epochs=3)   # loss, <name>, val_loss, ...
net.save("model.keras")
"""

from collections.abc import Mapping
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss.adapters.batch_loss_means import BatchLossMeans
from tfloss.common.unique_names import unique_name
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES
from tfloss.errors import ModelError
from tfloss.forward.context import forward_context
from tfloss.forward.losses import LossWeights, collect
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.step.backward import tf_variables
from tfloss.step.dry_run import dry_run

_DECIDED_BY_MODEL = ("loss", "loss_weights", "metrics", "weighted_metrics")


def to_keras(model: keras.Model, *, loss_weights: Mapping[str, float] | None = None) -> keras.Model:
    """Makes a Keras model with `fit`, `evaluate` and `predict` of a model that owns its losses.

    `fit` takes the batches that the model takes, as a data set; arrays `x`, `y` and `sample_weight`
    become the batch `(x, y, sample_weight)`. The history has `loss`, the weighted sum of all
    losses, and each loss by its name. `evaluate`, and validation in `fit`, give the losses of the
    training forward, as `Trainer.evaluate(losses=True)` does: no state changes, and Dropout draws
    the same mask every time. `predict` returns what the inference forward returns of the whole
    batch. On one replica `fit` ends with the weights of a `Trainer(fused_adam=False)`, bit for bit.
    Runs on the host.

    Call `compile(optimizer)` without losses and metrics; with them, `fit` raises ValueError.
    `net.save("x.keras")` and `keras.models.load_model` work if the model can be saved by Keras: its
    class is registered and has `get_config`. As for all models, Keras's files hold no seed states,
    so Dropout draws other masks after loading. Summaries are dropped: use a Trainer for them.

    Args:
      model: A model whose training forward reports losses. It is shared, not copied: `net.model`.
      loss_weights: `{loss name or glob: weight}`, numbers.

    Returns:
      A Keras model, named as the model.

    Raises:
      ModelError: The current strategy has several replicas.
    """
    return _ToKeras(model, loss_weights, name=model.name)


@keras.saving.register_keras_serializable(package="tfloss", name="to_keras")
class _ToKeras(keras.Model):
    """A model whose train step minimises the losses that another model reports."""

    fit = filtered_tracebacks(keras.Model.fit)
    evaluate = filtered_tracebacks(keras.Model.evaluate)
    predict = filtered_tracebacks(keras.Model.predict)

    def __init__(self, model: keras.Model, loss_weights: Any = None, **options: Any):
        super().__init__(**options)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ModelError(
                "adapters.to_keras trains on one replica. On several, use tfloss.Trainer(model, "
                "optimizer, strategy=strategy), or make the model outside of strategy.scope()."
            )
        self.model = model
        self._means = BatchLossMeans()
        self._given_weights = dict(loss_weights or {})
        self._loss_weights = LossWeights(loss_weights)
        self._batch_spec: Any = None

    def call(self, batch: Any, training: bool = False) -> Any:
        """Returns the predictions of the inference forward."""
        del training  # in training mode, the model returns losses
        return self.model(batch, training=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Updates the model by one batch. Traced."""
        batch = self._batch(data)
        step = tf.cast(self.optimizer.iterations, tf.int64)
        with tf.GradientTape() as tape:
            losses, total = self._losses_of(batch, step)
            scaled = self.optimizer.scale_loss(total)
        variables = self.model.trainable_variables
        gradients: Any = tape.gradient(scaled, tf_variables(variables))
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._logs(batch, losses, total)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Computes the losses of one batch without changing state. Traced."""
        batch = self._batch(data)
        with keras.StatelessScope():
            losses, total = self._losses_of(batch, tf.constant(0, tf.int64))
        return self._logs(batch, losses, total)

    def predict_step(self, data: Any) -> Any:
        """Returns the predictions of one batch. Traced."""
        return self(self._batch(data), training=False)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the model."""
        model = keras.saving.serialize_keras_object(self.model)
        weights = {**self._given_weights}
        return {**super().get_config(), "model": model, "loss_weights": weights}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "_ToKeras":
        """Makes the model of its configuration."""
        config = {**config}
        model = keras.saving.deserialize_keras_object(config.pop("model"), custom_objects)
        return cls(model, config["loss_weights"], name=config["name"])

    def get_build_config(self) -> dict[str, Any]:
        """Returns the structure of the batches, which variables are created for."""
        return {"batch": None if self._batch_spec is None else _encoded(self._batch_spec)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates the variables by tracing the training forward once."""
        if config.get("batch") is not None:
            self.built, self._batch_spec = True, _decoded(config["batch"])
            self._create_variables()

    def _batch(self, data: Any) -> Any:
        """Returns the model's batch, and remembers its structure. Traced."""
        with tf.init_scope():  # it reads the learning rate
            compiled: Any = self.get_compile_config() or {}
        for name in _DECIDED_BY_MODEL:
            if compiled.get(name) is not None:
                raise ValueError(
                    f"compile({name}=...): this model reports its losses itself, so leave it out. "
                    "Give weights to adapters.to_keras(model, loss_weights={...}), and metrics to "
                    "tfloss.Trainer.evaluate(data, metrics)."
                )
        if isinstance(data, tuple) and len(cast(tuple[Any, ...], data)) == 1:
            data = data[0]
        self.built = True  # `call` itself is not used in training
        self._batch_spec = tf.nest.map_structure(_any_batch_size, data)
        if not self.model.built:
            with tf.init_scope():
                self._create_variables()
        return data

    def _create_variables(self) -> None:
        def forward(batch: Any) -> Any:
            return self.model(batch, training=True)

        dry_run(self.model, forward, self._batch_spec, tf.distribute.get_strategy())

    def _losses_of(self, batch: Any, step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Runs the training forward. Returns the losses, and their weighted sum."""
        with forward_context(step, recording=False) as context:
            returned = self.model(batch, training=True)
        losses = collect(returned, context, self.model.trainable_variables)
        self._loss_weights.check_all_used({name: name for name in losses})
        return losses, tf.add_n([*self._loss_weights.apply(losses, step).values()])

    def _logs(self, batch: Any, losses: Mapping[str, Any], total: Any) -> dict[str, Any]:
        values = {"loss": total}
        if list(losses) != ["loss"]:
            values |= {unique_name(name, values): value for name, value in losses.items()}
        self._means.update_state(values, ROWS_ARE_EXAMPLES.count(batch))
        return self.get_metrics_result()


def _any_batch_size(tensor: Any) -> tf.TensorSpec:
    shape = tensor.shape
    return tf.TensorSpec([None, *shape[1:]] if shape.rank else shape, tensor.dtype)


def _encoded(spec: Any) -> Any:
    """A nest of specs as JSON can hold it."""
    if isinstance(spec, Mapping):
        items = cast(Mapping[str, Any], spec).items()
        return {"kind": "dict", "parts": {key: _encoded(one) for key, one in items}}
    if isinstance(spec, tuple | list):
        parts = [_encoded(one) for one in cast(tuple[Any, ...], spec)]
        return {"kind": "tuple" if isinstance(spec, tuple) else "list", "parts": parts}
    return {"kind": "tensor", "shape": spec.shape.as_list(), "dtype": spec.dtype.name}


def _decoded(code: Mapping[str, Any]) -> Any:
    if code["kind"] == "dict":
        return {key: _decoded(one) for key, one in code["parts"].items()}
    if code["kind"] == "tensor":
        return tf.TensorSpec(code["shape"], code["dtype"])
    parts = [_decoded(one) for one in code["parts"]]
    return tuple(parts) if code["kind"] == "tuple" else parts
