"""The dry run creates the same variables, with the same values, on any number of replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import make_step
from tfloss import errors
from tfloss.engine.engine import Engine
from tfloss.step.dry_run import dry_run
from tfloss.step.train_step import TrainStep

L = keras.layers
X = np.random.RandomState(0).randn(8, 6).astype(np.float32)
DATA = tf.data.Dataset.from_tensor_slices({"x": X, "y": np.sin(X[:, :4])}).batch(8).repeat()


class _Model(keras.Model):
    """Reports the squared error of `predict_from`."""

    def __init__(self):
        super().__init__(name="net")

    def call(self, batch, training=False):
        z = self.predict_from(batch["x"])
        return {"mse": tf.reduce_mean((z - batch["y"]) ** 2)} if training else z


class _OwnBuild(_Model):
    """Weights, sublayers that are built here or by their call, constants, copies and metrics."""

    def build(self, _):
        self.w = self.add_weight(shape=(6, 8), initializer="glorot_uniform", name="w")
        self.inner = L.Dense(8, activation="tanh", name="inner")
        self.inner.build((None, 8))
        self.last = L.Dense(4, name="last")
        self.teacher = L.Dense(8, name="teacher", trainable=False)
        self.teacher.build((None, 8))
        self.teacher.set_weights(self.inner.get_weights())
        self.scale = keras.Variable(np.float32([1, 2, 3, 4]), name="scale")
        self.positions = keras.ops.arange(4, dtype="float32") / 10
        self.drawn = self.add_weight(
            shape=(4,), initializer=lambda shape, dtype=None: keras.random.normal(shape), name="d"
        )

    def predict_from(self, x):
        h = self.inner(x @ self.w) + self.teacher(x @ self.w)
        return self.last(h) * self.scale + self.positions + self.drawn


class _Sequential(_Model):
    """Unbuilt `Sequential`s, one of them in a list."""

    def __init__(self):
        super().__init__()
        self.blocks = [keras.Sequential([L.Dense(6, activation="tanh"), L.Dense(6)])]
        self.last = keras.Sequential([L.Dense(4)])

    def predict_from(self, x):
        for block in self.blocks:
            x = block(x) + x
        return self.last(x)


class _Nested(_Model):
    """Nested models: with a `build` of their own, in a dict, and made at the first call."""

    def __init__(self):
        super().__init__()
        outer = self

        class Own(keras.Model):
            def build(self, shape):
                self.a = L.Dense(6, name="a")
                self.a.build(shape)

            def call(self, x):
                return self.a(x)

        class Lazy:
            """Not a layer."""

            dense = None

            def __call__(self, x):
                if self.dense is None:
                    self.dense = L.Dense(4, name="late")
                    outer.late.append(self.dense)
                return self.dense(x)

        self.inner, self.late, self.lazy = {"own": Own(name="own")}, [], Lazy()

    def predict_from(self, x):
        return self.lazy(self.inner["own"](x))


class _Module(_Model):
    """A `tf.Module` that makes its variable at the first call, as TensorFlow's guide does."""

    def __init__(self):
        super().__init__()
        self.module = tf.Module()
        self.module.w = None
        self.last = L.Dense(4, name="last")

    def predict_from(self, x):
        if self.module.w is None:
            value = tf.random.stateless_normal([x.shape[-1], 6], [1, 2])
            self.module.w = tf.Variable(value, trainable=False, name="module_w")
        return self.last(x @ self.module.w)


class _OwnGradient(_Model):
    """A model that is not built, and takes gradients of its own weights (MAML)."""

    def __init__(self):
        super().__init__()
        self.last = L.Dense(4, name="last")

    def call(self, batch, training=False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.last(batch["x"]) - batch["y"]) ** 2)
        found = tape.gradient(loss, self.last.trainable_variables)
        replica = tf.distribute.get_replica_context()
        found = replica.all_reduce(tf.distribute.ReduceOp.MEAN, found)
        kernel, bias = (
            w - 0.1 * tf.stop_gradient(g)
            for w, g in zip(self.last.trainable_variables, found, strict=True)
        )
        z = batch["x"] @ kernel + bias
        return {"outer": tf.reduce_mean((z - batch["y"]) ** 2)} if training else z


class _ReadsHandles(_Model):
    """Reads a variable in ways that need a replica context."""

    def __init__(self):
        super().__init__()
        self.table = self.add_weight(shape=(6, 4), initializer="glorot_uniform", name="table")
        self.last = L.Dense(4, name="last")

    def predict_from(self, x):
        rows = tf.argmax(x, -1)
        one = tf.raw_ops.ResourceGather(resource=self.table.handle, indices=rows, dtype=tf.float32)
        return self.last(x) + one + tf.gather(self.table, rows) + tf.stop_gradient(self.table[0])


class _Compiled(_Model):
    """Keras's own loss and metrics, whose variables appear at their first use."""

    def __init__(self):
        super().__init__()
        inputs = keras.Input((6,))
        self.net = keras.Model(inputs, L.Dense(4, name="out")(inputs), name="inner")
        self.net.compile(loss="mse", metrics=["mae"])
        self.f1 = keras.metrics.F1Score(threshold=0.5, name="f1")
        self.build(None)

    def build(self, _):
        pass

    def call(self, batch, training=False):
        z = self.net(batch["x"], training=training)
        if not training:
            return z
        self.f1.update_state(tf.cast(batch["y"] > 0, tf.float32), tf.nn.sigmoid(z))
        self.net.compute_metrics(batch["x"], batch["y"], z)
        return {"mse": self.net.compute_loss(batch["x"], batch["y"], z)}


class _ForwardMethod(_Model):
    """Only another method than `call` is used: the model itself is never built."""

    def __init__(self):
        super().__init__()
        self.last = L.Dense(4, name="last")

    def losses_of(self, batch):
        return {"mse": tf.reduce_mean((self.last(batch["x"]) - batch["y"]) ** 2)}


class _ForwardStep(TrainStep):
    def forward(self, batch):
        return self.model.losses_of(batch)


KINDS = {
    "own build": _OwnBuild,
    "unbuilt Sequential": _Sequential,
    "nested models": _Nested,
    "tf.Module": _Module,
    "own gradient": _OwnGradient,
    "handles": _ReadsHandles,
    "compiled": _Compiled,
    "another method": _ForwardMethod,
}


def _trained(kind, count, replicas):
    """The values before and after 3 steps, by path, and the shapes of the optimizer's slots."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    step = _ForwardStep if kind == "another method" else TrainStep
    train_step, iterator = make_step(
        KINDS[kind],
        DATA,
        replicas(count),
        optimizer=lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        step=step,
    )
    model = train_step.model
    before = [v.numpy().copy() for v in model.variables]
    for variable in model.variables:
        each = train_step.strategy.experimental_local_results(variable.value)
        assert len(each) == count
        for one in each[1:]:
            np.testing.assert_array_equal(one.numpy(), each[0].numpy())
    metrics = len(model.metrics_variables)
    Engine(train_step).run(iterator, 3)
    assert len(model.metrics_variables) == metrics
    slots = [(v.path, tuple(v.shape)) for v in train_step.optimizers["optimizer"].variables]
    return [v.path for v in model.variables], before, [v.numpy() for v in model.variables], slots


@pytest.mark.promise(54)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_variables_start_equal_bit_for_bit_and_train_alike_on_two_replicas(kind, replicas):
    paths, before, after, slots = _trained(kind, 1, replicas)
    paths_2, before_2, after_2, slots_2 = _trained(kind, 2, replicas)
    assert paths == paths_2 and slots == slots_2
    for path, one, two in zip(paths, before, before_2, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=path)
    for path, one, two in zip(paths, after, after_2, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5, err_msg=path)
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_first_gradient_is_that_of_the_initial_weights(replicas):
    """By hand: SGD(0.1) on mean((x w - y)^2), for the weight of a model with its own build."""

    class Model(_Model):
        def build(self, _):
            self.w = self.add_weight(shape=(6, 4), initializer="glorot_uniform", name="w")

        def predict_from(self, x):
            return x @ self.w

    train_step, iterator = make_step(Model, DATA, replicas(2))
    w = train_step.model.w.numpy()
    Engine(train_step).run(iterator, 1)
    gradient = X.T @ (X @ w - np.sin(X[:, :4])) * 2 / (8 * 4)
    np.testing.assert_allclose(train_step.model.w.numpy(), w - 0.1 * gradient, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_the_dry_run_is_that_of_one_replica(count, replicas):
    seen = []

    class Model(_Model):
        def __init__(self):
            super().__init__()
            self.last = L.Dense(4, name="last")

        def predict_from(self, x):
            context = tf.distribute.get_replica_context()
            seen.append((int(context.replica_id_in_sync_group), context.num_replicas_in_sync))
            return self.last(x)

    make_step(Model, DATA, replicas(count))
    assert set(seen) == {(0, 1)}


@pytest.mark.parametrize("count", [1, 2])
def test_an_initial_value_that_depends_on_the_batch_is_refused(count, replicas):
    class Model(_Model):
        mean = None

        def __init__(self):
            super().__init__()
            self.last = L.Dense(4, name="last")

        def predict_from(self, x):
            if self.mean is None:
                self.mean = tf.Variable(tf.reduce_mean(x, 0), trainable=False, name="mean")
            return self.last(x - self.mean)

    with pytest.raises(errors.ModelError, match="'mean' is computed from the batch"):
        make_step(Model, DATA, replicas(count))


def test_a_built_model_with_a_step_of_its_own_needs_no_forward(replicas):
    """It has no `call`, and a layer that is not built."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.last, self.unused = L.Dense(4, name="last"), L.Dense(1, name="unused")
            self.last.build((None, 6))
            self.built = True

    class Step(TrainStep):
        def step(self, batch):
            last = self.model.last
            return self.minimize(lambda one: tf.reduce_mean(last(one["x"]) ** 2), batch)

    train_step, iterator = make_step(Model, DATA, replicas(2), step=Step)
    before = train_step.model.last.kernel.numpy()
    Engine(train_step).run(iterator, 1)
    assert not np.array_equal(train_step.model.last.kernel.numpy(), before)


def test_a_model_that_is_never_called_is_traced_once():
    traces = []

    class Step(_ForwardStep):
        def forward(self, batch):
            traces.append(1)
            return super().forward(batch)

    train_step, _ = make_step(_ForwardMethod, DATA, step=Step)
    train_step.build(DATA.element_spec)
    assert len(traces) == 1 and not train_step.model.built


def test_batches_of_ragged_and_missing_tensors_are_traced():
    ragged, sparse = tf.ragged.constant([[1.0], []]), tf.sparse.eye(2)
    data = tf.data.Dataset.from_tensors({"r": ragged, "s": sparse, "x": tf.zeros([3])})
    seen = []

    model, strategy = keras.Sequential([L.Dense(1)]), tf.distribute.get_strategy()
    dry_run(model, seen.append, data.map(lambda batch: (batch, None)).element_spec, strategy)
    dry_run(model, seen.append, (data.element_spec, None), strategy)
    for batch, none in seen:
        assert none is None and isinstance(batch["r"], tf.RaggedTensor)
        assert isinstance(batch["s"], tf.SparseTensor) and batch["x"].shape == [3]
