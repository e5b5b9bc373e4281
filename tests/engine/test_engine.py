import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tests.fork import run_script
from tests.toys import Line, make_step, rows
from tfloss import _upstream, summary
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import LossError, NonFiniteLossError

ROOT = rows([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 5.0], 2)  # batch 3 has a negative number


def _root(model, batch, y):
    """sqrt(w x): NaN in the third batch."""
    return {"root": tf.reduce_mean(tf.sqrt(y)), "mean": tf.reduce_mean(y)}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("per_call", [1, 8])
def test_a_loss_that_is_not_finite_stops_before_its_update(count, per_call, replicas):
    train_step, iterator = make_step(
        lambda: Line(_root),
        ROOT,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.Adam(0.01),
    )
    engine = Engine(train_step)
    with pytest.raises(NonFiniteLossError, match="Loss 'root' is not finite at step 3") as e:
        for _ in range(8):
            engine.run(iterator, per_call)
    assert e.value.step == 3
    assert e.value.losses["mean"] == pytest.approx(float(train_step.model.w.numpy()) * -0.5)
    seen = np.concatenate([np.asarray(part["x"]) for part in e.value.batch])
    assert seen.tolist() == [0.0, -1.0]
    assert train_step.counter.numpy() == 2
    assert train_step.optimizers["optimizer"].iterations.numpy() == 2
    for variable in train_step.optimizers["optimizer"].variables + train_step.model.variables:
        for value in train_step.strategy.experimental_local_results(variable.value):
            assert np.isfinite(value.numpy()).all()


def test_a_gradient_that_is_not_finite_stops_it_too_when_it_is_clipped():
    def report(model, batch, y):
        return {"root": tf.reduce_mean(tf.sqrt(y * 0.0))}

    train_step, iterator = make_step(lambda: Line(report), ROOT, clip_norm=1.0)
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at step 1, .*'root'"):
        Engine(train_step).run(iterator, 3)
    assert train_step.model.w.numpy() == 1.0


def test_without_the_guard_nothing_is_checked():
    train_step, iterator = make_step(lambda: Line(_root), ROOT)
    block = Engine(train_step, guard=False).run(iterator, 4)
    assert np.isnan(block.rows()[:, block.names.index("losses/total")]).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_the_guard_keeps_batches_of_strings_and_ragged_tensors():
    class Model(Line):
        def call(self, batch, training=False):
            return tf.reduce_mean(tf.math.log(self.w * batch[0])) if training else batch[0]

    ragged = tf.ragged.constant([[1], [2, 3]])
    data = tf.data.Dataset.from_tensors((tf.constant([-1.0, 1.0]), ["a", "b"], ragged))
    train_step, iterator = make_step(Model, data)
    with pytest.raises(NonFiniteLossError) as e:
        Engine(train_step).run(iterator, 1)
    ((_, words, numbers),) = e.value.batch
    assert words.numpy().tolist() == [b"a", b"b"]
    assert numbers.to_list() == [[1], [2, 3]]


def test_one_trace_for_any_number_of_steps_and_one_for_recording():
    def report(model, batch, y):
        summary.histogram("y", y)
        return tf.reduce_mean(y)

    train_step, iterator = make_step(lambda: Line(report), rows(np.ones(8), 2))
    engine = Engine(train_step)
    for steps in (1, 7, 100, 3):
        assert engine.run(iterator, steps).rows().shape[0] == steps
        assert len(engine.run(iterator, 1, recording=True).summaries) == 1
    assert engine.traces == 2
    assert engine.run(iterator, 2).first == 115


def _ops(graph_def):
    """Returns the types of all ops, those of called functions that only the process knows, too."""
    own = {one.signature.name: one for one in graph_def.library.function}
    nodes, found = list(graph_def.node), set()
    while nodes:
        node = nodes.pop()
        found.add(node.op)
        for name in set(_upstream.called_names(node)) - found:
            found.add(name)
            nodes += (own.get(name) or context.context().get_function_def(name)).node_def
    return found


@pytest.mark.parametrize("mode", ["graph", "step", "loop"])
def test_only_a_step_that_needs_the_norm_of_its_gradient_computes_it(mode):
    found = []
    for options in ({}, {"clip_norm": 9.0}):
        train_step, iterator = make_step(Line, rows([1.0], 1), **options)
        engine = Engine(train_step, mode=mode)
        if mode == "loop":
            engine._compiled.trace(BatchStacker(iterator, 1).take(1))
            (program,) = engine._compiled._programs.values()
        else:
            number = tf.TensorSpec([], tf.int32)
            program = engine._silent.get_concrete_function(iterator, number)
        found.append("L2Loss" in _ops(program.graph.as_graph_def()))
    assert found == [False, True]


def test_a_recording_call_runs_one_step():
    train_step, iterator = make_step(Line, rows([1.0], 1))
    with pytest.raises(ValueError, match="runs one step, got steps=2"):
        Engine(train_step).run(iterator, 2, recording=True)


def test_the_end_of_the_data_raises_and_the_counter_says_where():
    train_step, _ = make_step(Line, rows([1.0], 1))
    data = tf.data.Dataset.from_tensor_slices({"x": [1.0, 2.0, 3.0]}).batch(1)
    with pytest.raises(tf.errors.OutOfRangeError):
        Engine(train_step).run(iter(data), 10)
    assert train_step.counter.numpy() == 3


def test_all_that_xla_can_not_compile_is_named_by_line():
    def report(model, batch, y):
        text = tf.strings.as_string(y[0])
        png = tf.io.encode_png(tf.zeros([1, 1, 1], tf.uint8))
        number = tf.strings.to_number(text) + tf.cast(tf.strings.length(png), tf.float32)
        return tf.reduce_mean(y) + 0.0 * number

    train_step, iterator = make_step(lambda: Line(report), rows([1.0], 1))
    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        Engine(train_step, mode="step").run(iterator, 1)
    message = str(e.value)
    assert "jit=False" in message
    line = report.__code__.co_firstlineno
    for op, below in {
        "AsString": 1,
        "EncodePng": 2,
        "StringToNumber": 3,
        "StringLength": 3,
    }.items():
        assert f"{op} ({__file__}:{line + below}, in report)" in message
    assert "Mean" not in message and "Reshape" not in message


def test_a_shape_that_is_not_static_is_advised_about():
    def report(model, batch, y):
        some = tf.boolean_mask(y, y > 0.0)
        return tf.reduce_mean(tf.reshape(some, [-1, tf.size(tf.unique(some).y)]))

    train_step, iterator = make_step(lambda: Line(report), rows([1.0], 1))
    with pytest.raises(tf.errors.OpError) as e:
        Engine(train_step, mode="step").run(iterator, 1)
    assert "a shape that is not static" in e.value.__notes__[0]


def test_losses_that_depend_on_the_shape_are_refused():
    class Model(Line):
        def call(self, batch, training=False):
            x = tf.reduce_mean(self.w * batch["x"])
            return {"a": x} if batch["x"].shape[0] == 2 else {"b": x}

    train_step, iterator = make_step(Model, rows([1.0, 2.0], 2))
    engine = Engine(train_step)
    engine.run(iterator, 1)
    with pytest.raises(LossError, match="losses/a.*then losses/b"):
        engine.run(iter(rows([1.0, 2.0, 3.0], 3)), 1)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_a_bad_step_leaves_statistics_and_random_states_as_they_were(count, mode, replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.norm = keras.layers.BatchNormalization(name="norm", momentum=0.5)
            self.drop = keras.layers.Dropout(0.1, seed=1, name="drop")

        def call(self, batch, training=False):
            x = self.norm(batch["x"], training=training)
            y = self.drop(x, training=training)
            return {"mean": tf.reduce_mean(x**2) + tf.reduce_mean(y**2)}

    values = np.ones([12, 1], np.float32)
    values[11] = np.nan  # on the last replica, in the third step
    dataset = tf.data.Dataset.from_tensor_slices({"x": values}).batch(4, True)
    states = []
    for steps in (2, 3):
        train_step, iterator = make_step(Model, dataset, strategy=replicas(count))
        engine = Engine(train_step, mode=mode)
        if steps == 2:
            engine.run(iterator, 2)
        else:
            with pytest.raises(NonFiniteLossError):
                engine.run(iterator, 3)
        local = train_step.strategy.experimental_local_results
        states.append([one.numpy() for v in train_step.model.variables for one in local(v.value)])
        keras.utils.set_random_seed(0)
    for two, three in zip(*states, strict=True):
        np.testing.assert_array_equal(two, three)


def test_an_error_after_a_nan_is_its_own():
    def report(model, batch, y):
        tf.debugging.assert_less(batch["x"], 100.0, message="too big")
        return tf.reduce_mean(y)

    train_step, iterator = make_step(lambda: Line(report), rows([np.nan, 1000.0], 1))
    engine = Engine(train_step)
    with pytest.raises(NonFiniteLossError):
        engine.run(iterator, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too big"):
        engine.run(iterator, 1)


def test_none_in_a_batch_is_let_through():
    dataset = tf.data.Dataset.from_tensors({"x": np.ones(2, "f"), "nothing": None}).repeat()
    train_step, iterator = make_step(Line, dataset)
    Engine(train_step).run(iterator, 2)
    assert train_step.model.w.numpy() == pytest.approx(0.8)


ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from tests.toys import make_step, rows
from tfloss import summary
from tfloss.engine.engine import Engine

spent = []  # time passes only when an op of the step runs
tf.timestamp = lambda: tf.ensure_shape(
    tf.numpy_function(lambda: float(len(spent)), [], tf.float64), []
)

def second(value):
    spent.append(1)
    return np.zeros_like(value)

class Deep(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones")

    def call(self, batch, training=False):
        y = self.w * batch["x"]
        for _ in range(20):
            zero = tf.numpy_function(second, [y], tf.float32, stateful=False)
            y += tf.stop_gradient(tf.ensure_shape(zero, y.shape))
        summary.histogram("y", y)
        return tf.reduce_mean(y)

for replicas in (1, 2):
    strategy = tf.distribute.get_strategy()
    if replicas == 2:
        reduction = tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction)
    step, iterator = make_step(Deep, rows([1.0, 2.0], 2), strategy=strategy)
    engine = Engine(step)
    for steps, recording in ((10, False), (1, True)):
        spent.clear()
        logs = engine.run(iterator, steps, recording=recording)
        print(len(spent), float(logs.waited))
"""


def test_on_one_core_the_step_is_not_taken_for_waiting(tmp_path):
    """Its first op that needs the batch is as ready as the one that looks at the clock."""
    script = tmp_path / "one_core.py"
    script.write_text(ONE_CORE)
    found = run_script(script, environment={"CUDA_VISIBLE_DEVICES": "-1"})
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["200 0.0", "20 0.0", "400 0.0", "40 0.0"]
