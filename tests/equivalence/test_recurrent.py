"""RNN layers keep their states and draw their masks as plain Keras does, on any replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.errors import ExportError, ModelError

L = keras.layers
LAYERS = {
    "lstm": lambda **k: L.LSTM(2, **k),
    "gru": lambda **k: L.GRU(2, **k),
    "simple": lambda **k: L.SimpleRNN(2, **k),
    "both ways": lambda **k: L.Bidirectional(L.GRU(2, **k)),
    "conv": lambda **k: L.ConvLSTM1D(2, 3, **k),
}


def stacked(stateful=False, **options):
    cells = [L.LSTMCell(2, **options), L.GRUCell(3, **options)]
    return L.RNN(cells, stateful=stateful)


ALL = LAYERS | {"stacked": stacked}
RNG = np.random.default_rng(0)


def inputs(kind, examples=8):
    return RNG.normal(size=(examples, 3, 5, 2) if kind == "conv" else (examples, 3, 2))


class Net(keras.Model):
    """Training: the mean square of the outputs of a layer."""

    def __init__(self, layer):
        super().__init__(name="net")
        self.rnn = layer

    def call(self, batch, training=False):
        y = tf.reduce_mean(self.rnn(batch["x"], training=training) ** 2, -1, keepdims=True)
        return tf.reduce_mean(y) if training else {"y": tf.reshape(y, [tf.shape(y)[0], -1])}


def make(kind, strategy, workdir=None, jit=False, **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model, optimizer = Net(ALL[kind](**options)), keras.optimizers.SGD(0.5)
    return tfloss.Trainer(
        model, optimizer, strategy=strategy, workdir=workdir, default_hooks=False, jit=jit
    )


def dataset(x, batch=4):
    return tf.data.Dataset.from_tensor_slices({"x": x.astype(np.float32)}).batch(
        batch, drop_remainder=True
    )


def states(trainer):
    """The states of all examples, whatever replica has them."""
    variables = trainer.state.variables()
    return {k: np.array(v.read_value() if hasattr(v, "read_value") else v)
            for k, v in variables.items() if "/states/" in k}  # fmt: skip


def by_keras(kind, x, steps):
    """Weights and states after training by a plain loop, batch by batch."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model, optimizer = Net(ALL[kind](stateful=True)), keras.optimizers.SGD(0.5)
    batches = list(dataset(x))
    model.rnn.build(batches[0]["x"].shape)
    for step in range(steps):
        with tf.GradientTape() as tape:
            loss = model(batches[step % len(batches)], training=True)
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    layers = [model.rnn, getattr(model.rnn, "forward_layer", None)]
    layers.append(getattr(model.rnn, "backward_layer", None))
    own = [keras.tree.flatten(one.states) for one in layers if one and "states" in vars(one)]
    return [v.numpy() for v in model.trainable_weights], [v.numpy() for each in own for v in each]


OTHERS = [("conv", 1, False), ("lstm", 1, "loop"), ("stacked", 2, False), ("simple", 1, False),
          ("gru", 2, False), ("both ways", 2, False)]  # fmt: skip
CASES = [
    ("lstm", 2, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
]


@pytest.mark.promise(44)
@pytest.mark.parametrize(("kind", "count", "jit"), CASES)
def test_states_go_on_are_saved_and_stay_in_evaluation(kind, count, jit, replicas, tmp_path):
    x, strategy = inputs(kind), replicas(count)
    weights, expected = by_keras(kind, x, 3)
    trainer = make(kind, strategy, tmp_path, jit, stateful=True)
    data = dataset(x)
    trainer.train(data.repeat(), 2)
    before = states(trainer)
    mae = {"mae": tfloss.metric(keras.metrics.Mean(), lambda batch, y: y["y"])}
    found = [trainer.evaluate(data, mae, losses=True) for _ in range(2)]
    assert found[0] == found[1]
    for name, value in states(trainer).items():
        np.testing.assert_array_equal(value, before[name])
    trainer.save_checkpoint()
    resumed = make(kind, strategy, tmp_path, jit, stateful=True)
    resumed.train(data.repeat(), 3)
    for value, wanted in zip(states(resumed).values(), expected, strict=True):
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(value, wanted, atol=1e-6)
    for variable, wanted in zip(resumed.model.trainable_weights, weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), wanted, atol=1e-6)


@pytest.mark.promise(44)
def test_states_saved_on_one_replica_are_restored_on_two(replicas, tmp_path):
    x = inputs("lstm")
    one = make("lstm", replicas(1), tmp_path, stateful=True)
    one.train(dataset(x).repeat(), 2)
    one.save_checkpoint()
    one.train(dataset(x).repeat(), 3)
    two = make("lstm", replicas(2), tmp_path, stateful=True)
    two.train(dataset(x).repeat(), 3)
    for name, value in states(one).items():
        np.testing.assert_allclose(states(two)[name], value, atol=1e-6)


def test_an_evaluation_goes_from_batch_to_batch_as_keras_does(replicas):
    x = inputs("lstm")
    trainer = make("lstm", replicas(1), stateful=True)
    trainer.train(dataset(x).repeat(), 1)
    metric = tfloss.metric(keras.metrics.Mean(), lambda batch, y: y["y"])
    found = trainer.evaluate(dataset(x), {"mean": metric}, losses=True)
    before = states(trainer)
    both = [trainer.model(batch)["y"].numpy() for batch in dataset(x)]
    assert any((states(trainer)[k] != v).any() for k, v in before.items())
    assert found["mean"] == pytest.approx(np.mean(both), abs=1e-6)
    for state, value in zip(trainer.model.rnn.states, before.values(), strict=True):
        state.assign(value)
    losses = [float(trainer.model(batch, training=True)) for batch in dataset(x)]
    assert found["losses/loss"] == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.promise(44)
@pytest.mark.upstream
def test_upstream_leaves_out_the_states(tmp_path):
    layer = L.LSTM(2, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), layer])
    file = tmp_path / "m.weights.h5"
    model.save_weights(file)
    model(tf.ones([4, 3, 2]))
    moved = layer.states[0].numpy()
    model.load_weights(file)  # when the state was zero
    assert np.abs(moved).max() > 0
    np.testing.assert_array_equal(layer.states[0], moved)


def test_batches_that_have_no_state_for_each_example_are_refused(replicas):
    x = inputs("lstm")
    trainer = make("lstm", replicas(2), stateful=True)
    with pytest.raises(ModelError, match="(?s)'net/lstm' has stateful=True.*drop_remainder=True"):
        trainer.train(dataset(x, 3), 1)


DROPOUT = ["lstm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*ALL][1:])]


@pytest.mark.parametrize("kind", DROPOUT)
def test_masks_are_drawn_in_training_only(kind, replicas, tmp_path):
    x, strategy = inputs(kind), replicas(2 if kind == "lstm" else 1)
    options = {"dropout": 0.5, "recurrent_dropout": 0.4}

    trainer = make(kind, strategy, tmp_path / "run", **options)
    trainer.train(dataset(x).repeat(), 2)
    before = [one.numpy() for one in _seeds(trainer)]
    metric = tfloss.metric(keras.metrics.Mean(), lambda batch, y: y["y"])
    trainer.evaluate(dataset(x), {"mean": metric}, losses=True)
    spec = {"x": tf.TensorSpec([None, *x.shape[1:]])}
    path = tfloss.export(trainer.model, tmp_path / "export", spec)
    for value, wanted in zip(_seeds(trainer), before, strict=True):
        np.testing.assert_array_equal(value.numpy(), wanted)
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    batch = tf.constant(x[:4], tf.float32)
    np.testing.assert_allclose(
        served(x=batch)["y"], trainer.model({"x": batch})["y"], rtol=1e-5, atol=1e-6
    )


def _seeds(trainer):
    found = [v.value for v in trainer.model.variables if "seed" in v.path]
    assert found
    return [one for each in found for one in getattr(each, "values", (each,))]


@pytest.mark.slow  # tests/step/test_random_states.py is quick
def test_a_resumed_run_draws_the_same_masks(replicas, tmp_path):
    x = inputs("lstm")
    whole = make("lstm", replicas(1), dropout=0.5, recurrent_dropout=0.4)
    whole.train(dataset(x).repeat(), 3)
    first = make("lstm", replicas(1), tmp_path, dropout=0.5, recurrent_dropout=0.4)
    first.train(dataset(x).repeat(), 2)
    first.save_checkpoint()
    resumed = make("lstm", replicas(1), tmp_path, dropout=0.5, recurrent_dropout=0.4)
    resumed.train(dataset(x).repeat(), 3)
    for one, other in zip(whole.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_an_rnn_with_a_state_is_not_exported(replicas, tmp_path):
    trainer = make("lstm", replicas(1), stateful=True)
    trainer.train(dataset(inputs("lstm")).repeat(), 1)
    with pytest.raises(ExportError, match="(?s)'net/lstm/rnn_state'.*stateful=True.*return_state"):
        tfloss.export(trainer.model, tmp_path / "export", {"x": tf.TensorSpec([4, 3, 2])})
