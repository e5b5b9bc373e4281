"""Which unsaveable random ops are found, where, and what is reported about them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import rows
from tfloss.checkpoint.names import named_variables
from tfloss.errors import ModelError
from tfloss.inspect.unsaveable_random_ops import UnsaveableOpCheck, find_unsaveable_ops
from tfloss.trainer.checkpointed_variables import CheckpointedVariables

HERE = f"{__file__}:"


def found(function, saved=None):
    """Types of the ops that are found in a function of a float scalar."""
    traced = tf.function(function, autograph=False).get_concrete_function(tf.constant(1.0))
    return [one.op for one in find_unsaveable_ops(traced.graph, saved)]


LEGACY = {
    "RandomUniform": lambda: tf.random.uniform([]),
    "RandomUniformInt": lambda: tf.random.uniform([], maxval=5, dtype=tf.int32),
    "RandomStandardNormal": lambda: tf.random.normal([]),
    "TruncatedNormal": lambda: tf.random.truncated_normal([]),
    "RandomGamma": lambda: tf.random.gamma([], 1.0),
    "RandomPoissonV2": lambda: tf.random.poisson([], 1.0),
    "RandomShuffle": lambda: tf.random.shuffle([1.0, 2.0]),
    "Multinomial": lambda: tf.random.categorical([[1.0, 2.0]], 3),
    "ParameterizedTruncatedNormal": lambda: tf.raw_ops.ParameterizedTruncatedNormal(
        shape=[1], means=[0.0], stdevs=[1.0], minvals=[-1.0], maxvals=[1.0]
    ),
}


@pytest.mark.parametrize("name", LEGACY)
def test_ops_that_keep_their_state_in_the_kernel_are_found(name):
    assert found(lambda x: LEGACY[name]()) == [name]


def test_stateless_ops_are_not_reported():
    def draw(x):
        seed = [1, tf.cast(x, tf.int32)]
        tf.random.experimental.stateless_shuffle([1, 2], seed)
        return tf.random.stateless_normal([2], seed) + keras.random.uniform([2], seed=3)

    assert found(draw) == []


@pytest.mark.parametrize(
    "inside",
    [
        lambda x: tf.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a + draw()), [0, x]),
        lambda x: tf.cond(x > 0, lambda: x + draw(), lambda: x),
        lambda x: tf.switch_case(tf.cast(x, tf.int32), [lambda: x, lambda: x + draw()]),
        lambda x: tf.map_fn(lambda y: y + draw(), x + tf.zeros([3])),
        lambda x: tf.function(lambda y: y + draw())(x),
        lambda x: tf.function(lambda y: y + draw(), jit_compile=True)(x),
        lambda x: tf.recompute_grad(lambda y: y + draw())(x),
        lambda x: tf.function(lambda y: tf.cond(y > 0, lambda: y + draw(), lambda: y))(x),
    ],
    ids=["while", "cond", "switch", "map_fn", "function", "jit", "recompute", "nested"],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_ops_are_found_in_control_flow_and_nested_functions(inside, gradient):
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.add_n([tf.reduce_sum(one) for one in tf.nest.flatten(inside(x))[-1:]])
        return tape.gradient(y, x) if gradient else y

    assert found(step) == ["RandomStandardNormal"]


def draw():
    return tf.random.normal([])


def test_each_op_has_its_source_line_and_a_remedy():
    def call(x):
        a = tf.random.normal([2])
        return a + tf.nn.dropout([x, x], 0.5) + tf.random.normal([2])

    traced = tf.function(call).get_concrete_function(tf.constant(1.0))
    first = call.__code__.co_firstlineno
    normal, dropout, again = map(str, find_unsaveable_ops(traced.graph))
    assert normal == (
        f"RandomStandardNormal ({HERE}{first + 1}, in call): use keras.random with a SeedGenerator "
        "of the layer, or tf.random.stateless_normal with a seed from tfloss.current_step()"
    )
    assert dropout == f"RandomUniform ({HERE}{first + 2}, in call): use keras.layers.Dropout"
    assert again.startswith(f"RandomStandardNormal ({HERE}{first + 2}, in call)")


def test_a_generator_is_not_reported_if_a_checkpoint_has_its_state():
    class Noisy(keras.Model):
        def __init__(self):
            super().__init__()
            self.noise = {"of": [tf.random.Generator.from_seed(1)]}
            self.drop = keras.layers.Dropout(0.5)

        def call(self, x):
            return self.drop(self.noise["of"][0].normal([2]), training=True)

    model = Noisy()
    other = tf.random.Generator.from_seed(2)
    saved = named_variables(model).values()
    assert len(saved) == 2
    assert found(model, saved) == []
    assert found(model) == []  # None: variables are not looked at
    assert found(model, []) == ["RngReadAndSkip", "AssignVariableOp"]
    inner = tf.function(lambda: other.normal([2]))
    assert found(lambda x: model(x) + inner(), saved) == ["RngReadAndSkip"]
    assert found(lambda x: model(x) + inner(), [*saved, other.state]) == []


def test_the_global_generator_of_keras_is_reported():
    assert found(lambda x: keras.random.uniform([]), []) == ["AssignVariableOp"]


class Noise(keras.Model):
    """Uses an unsaveable random op if `noisy`."""

    def __init__(self, noisy=True):
        super().__init__(name="noise")
        self.dense = keras.layers.Dense(1)
        self.drop = keras.layers.Dropout(0.5)
        self.norm = keras.layers.BatchNormalization()
        self.noisy = noisy

    def call(self, batch, training=False):
        y = self.norm(self.drop(self.dense(batch["x"][:, None]), training=training))
        if self.noisy:
            y += tf.random.normal([])
        return {"error": tf.reduce_mean(y**2)} if training else {"y": y}


def trainer(model, strategy=None, deterministic=False, **options):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model, optimizer = model(), keras.optimizers.Adam(0.01)
    one = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, **options)
    saved = lambda: CheckpointedVariables(one.train_step).variables().values()  # noqa: E731
    one._modes._check = UnsaveableOpCheck(deterministic, saved)
    return one


X = rows(np.arange(8.0), 4)


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_a_run_warns_once_before_its_first_step(jit):
    one = trainer(Noise, jit=jit, log_every=2)
    with pytest.warns(UserWarning, match="Resuming will not be bit-exact") as told:
        one.train(X, 4)
    (text,) = [str(w.message) for w in told if "Resuming" in str(w.message)]
    assert text.count("\n") == 1 and "RandomStandardNormal (" + HERE in text


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_deterministic_rejects_the_step_before_it_runs(jit):
    one = trainer(Noise, deterministic=True, jit=jit)
    with pytest.raises(ModelError, match=r"deterministic=True, but the.*\n.*RandomStandardNormal"):
        one.train(X, 4)
    assert one.train_step.counter.numpy() == 0
    with pytest.raises(ModelError, match="RandomStandardNormal"):  # again
        one.train(X, 4)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"jit": "loop"}),
        (2, {"jit": False, "accumulate": 2, "ema": 0.9, "clip_norm": 1.0}),
        (2, {"jit": False, "precision": "mixed_float16", "skip_nonfinite": True}),
        (1, {"jit": True}),
    ],
)
def test_all_state_of_keras_and_the_trainer_is_saved(count, options, replicas):
    one = trainer(lambda: Noise(False), replicas(count), deterministic=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.train(X, 4)
    assert one.step == 4


def _objects():
    keys = tf.constant([1], tf.int64)
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
    queue = tf.queue.FIFOQueue(3, tf.float32, [[]])
    iterator = iter(tf.data.Dataset.range(3))
    return {
        "LookupTableInsertV2": (lambda x: table.insert(keys, keys), "attribute of a layer"),
        "QueueEnqueueV2": (lambda x: queue.enqueue(x), "no checkpoint can hold what it changes"),
        "QueueDequeueV2": (lambda x: queue.dequeue(), "no checkpoint"),
        "IteratorGetNext": (lambda x: next(iterator), "read it in the data set"),
        "Stage": (lambda x: tf.raw_ops.Stage(values=[x]), "no checkpoint"),
        "PyFunc": (lambda x: tf.numpy_function(np.sin, [x], tf.float32), "stateful=False"),
        "EagerPyFunc": (lambda x: tf.py_function(np.sin, [x], tf.float32), "stateful=False"),
    }


@pytest.mark.promise(44)
@pytest.mark.parametrize("name", _objects())
def test_state_that_is_no_variable_is_found(name):
    function, remedy = _objects()[name]

    def call(x):
        function(x)
        return x

    traced = tf.function(call, autograph=False).get_concrete_function(tf.constant(1.0))
    (only,) = find_unsaveable_ops(traced.graph, [])
    assert only.op == name and remedy in only.remedy and HERE in only.line
    expected = [name] if name in ("PyFunc", "EagerPyFunc") else []
    assert [one.op for one in find_unsaveable_ops(traced.graph)] == expected


def test_objects_of_the_function_itself_and_functions_without_state_are_not_reported():
    def inside(x):
        array = tf.TensorArray(tf.float32, 1).write(0, x)
        return array.stack() + tf.numpy_function(np.sin, [x], tf.float32, stateful=False)

    assert found(inside, []) == []


@pytest.mark.promise(44)
def test_a_table_of_the_model_is_saved_and_another_one_is_reported():
    class Model(keras.Model):
        def __init__(self, table):
            super().__init__()
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            self.built = True
            if table is None:
                self.own = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
            self.insert = lambda keys: (table or self.own).insert(keys, keys)

        def call(self, batch, training=False):
            self.insert(tf.constant([1], tf.int64))
            return tf.reduce_mean(self.w * batch["x"])

    def train(table):
        trainer = tfloss.Trainer(
            Model(table), keras.optimizers.SGD(0.1), default_hooks=False, jit=False,
        )  # fmt: skip
        trainer.train(rows(np.ones(8), 4), 1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(None)
    elsewhere = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
    with pytest.warns(UserWarning, match="LookupTableInsertV2 .*make the table an attribute"):
        train(elsewhere)
