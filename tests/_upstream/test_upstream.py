"""Each entry of `tfloss/_upstream.py` still does what it says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.python.client.pywrap_tf_session as session
from tensorflow.core.framework import op_def_pb2

from tfloss import _upstream
from tfloss.inspect.random_ops import state_by_definition

pytestmark = pytest.mark.upstream


def test_add_loss_is_seen_and_restored():
    original, seen = keras.Layer.add_loss, []
    layer = keras.layers.Dense(1, activity_regularizer="l2")

    def observe(layer, value):
        seen.append((layer.name, float(value)))
        return True

    with _upstream.intercept_add_loss(observe), _upstream.intercept_add_loss(lambda *a: False):
        layer(tf.zeros([2, 1]))
    assert seen == [(layer.name, 0.0)]
    assert keras.Layer.add_loss is original
    assert layer.losses == []


def test_every_kind_of_tf_summary_ends_in_write():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, x):
            tf.summary.scalar("scalar", 1.0)
            tf.summary.histogram("histogram", x)
            tf.summary.image("image", tf.zeros([1, 2, 2, 1]))
            tf.summary.text("text", "hello")
            tf.summary.audio("audio", tf.zeros([1, 4, 1]), 100)
            return x

    def observe(tag, tensor, metadata):
        seen.append((tag, metadata.plugin_data.plugin_name))
        return True

    with _upstream.intercept_tf_summary(observe):
        tf.function(Layer(name="layer"))(tf.zeros([1]))
    assert seen == [
        ("layer/scalar", "scalars"),
        ("layer/histogram", "histograms"),
        ("layer/image", "images"),
        ("layer/text", "text"),
        ("layer/audio", "audio"),
    ]


def test_inputs_untouched_keeps_labels_but_casts_weights():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.w = self.add_weight(name="w", shape=())

        def call(self, x):
            return x, tf.convert_to_tensor(self.w)

    model, x = Model(), tf.constant([70000.0])
    assert model(x)[0].dtype == tf.float16
    with _upstream.inputs_untouched(model):
        label, weight = model(x)
    assert label.dtype == tf.float32 and weight.dtype == tf.float16
    assert model(x)[0].dtype == tf.float16


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_gradients_already_reduced_turns_off_the_sum(wrap, replicas):
    strategy = replicas(2)
    with strategy.scope():
        w = tf.Variable([0.0])
        optimizer = wrap(keras.optimizers.SGD(1.0))
        optimizer.build([w])

    def apply(reduced):
        with _upstream.gradients_already_reduced(optimizer):
            optimizer.apply([reduced], [w])

    gradient = tf.constant([1.0 * getattr(optimizer, "initial_scale", 1.0)])
    tf.function(lambda: strategy.run(apply, (gradient,)))()
    assert w.numpy() == pytest.approx(-1.0)


def test_scratch_graphs_are_recognised():
    seen = []

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            seen.append(_upstream.in_scratch_graph())
            return self.dense(x)

    model = Model()
    model(tf.zeros([1, 1]))
    tf.function(model)(tf.zeros([1, 1]))
    assert seen == [True, False, False]


def test_rematerialised_blocks_are_recognised():
    seen = []

    def block(x):
        seen.append(_upstream.gradient_is_recorded())
        return x * 2.0

    @tf.function
    def traced(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.recompute_grad(block)(x)
            block(x)
        return tape.gradient(y, x)

    traced(tf.constant(1.0))
    assert seen[:2] == [False, True]


def test_a_variable_is_found_in_the_graph_that_reads_it():
    w = tf.Variable(1.0)

    @tf.function
    def traced():
        value = w * 2.0
        return _upstream.captured_here(w.handle).name == value.op.inputs[0].op.inputs[0].name

    assert traced.get_concrete_function() is not None and bool(traced())


def test_layers_by_path_sees_into_lists_and_dicts():
    class Block(keras.layers.Layer):
        def __init__(self, name):
            super().__init__(name=name)
            self.parts = {"a": keras.layers.Dense(1, name=f"{name}_a")}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.blocks = [Block("x"), (Block("y"),)]

    paths = [path for path, _ in _upstream.layers_by_path(Model())]
    assert paths == ["model", "model/x", "model/x/x_a", "model/y", "model/y/y_a"]


def test_innermost_finds_the_error_that_was_raised():
    class Model(keras.Model):
        def call(self, x):
            raise KeyError("labels")

    with pytest.raises(Exception) as e:
        tf.function(lambda x: Model()(x))(tf.zeros([1]))
    found = _upstream.innermost(e.value, KeyError)
    assert type(found) is KeyError and found.args == ("labels",)


def test_the_inputs_of_an_op_that_gave_nan_are_in_the_traceback():
    tf.debugging.enable_check_numerics()
    tf.debugging.disable_traceback_filtering()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError) as e:
            tf.constant([1.0, -2.0]) / tf.constant([4.0, 0.0])
    finally:
        tf.debugging.enable_traceback_filtering()
        tf.debugging.disable_check_numerics()
    found = _upstream.inputs_of_failed_check(e.value)
    assert [one.numpy().tolist() for one in found] == [[1.0, -2.0], [4.0, 0.0]]
    assert _upstream.inputs_of_failed_check(KeyError()) == []


def _two_weights():
    return [keras.Variable(0.0, name="one"), keras.Variable([0.0], name="two")]


def test_an_optimizer_keeps_the_variables_it_was_built_for_in_order():
    variables = _two_weights()
    optimizer = keras.optimizers.Adam()
    assert _upstream.optimizer_built_for(optimizer) == []
    optimizer.build(variables)
    found = _upstream.optimizer_built_for(optimizer)
    assert [id(v) for v in found] == [id(v) for v in variables]


def test_an_optimizer_keeps_its_slots_in_the_order_of_its_variables():
    variables = _two_weights()
    optimizer = keras.optimizers.Nadam()
    optimizer.build(variables)
    slots = _upstream.optimizer_slots(optimizer)
    of = {id(v): slots.get(id(v)) for v in optimizer.variables}
    assert of[id(optimizer.iterations)] == ("_iterations", None)
    found = [known for known in of.values() if known is not None and known[1] is not None]
    assert sorted((attribute, variable.name) for attribute, variable in found) == [
        ("_momentums", "one"),
        ("_momentums", "two"),
        ("_velocities", "one"),
        ("_velocities", "two"),
    ]
    # What a gradient does shows that the order is the one in which Keras uses them.
    optimizer.apply([tf.constant(0.0), tf.constant([1.0])], variables)
    moved = [known for v in optimizer.variables if (known := of[id(v)]) and np.any(v.numpy() != 0)]
    assert {v.name for _, v in moved if v is not None} == {"two"}


def test_an_optimizer_keeps_what_its_rate_is_computed_from():
    fixed = keras.optimizers.AdamW(0.5, weight_decay=0.1)
    assert _upstream.learning_rate_given(fixed) is fixed.learning_rate
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    assert _upstream.learning_rate_given(keras.optimizers.SGD(schedule)) is schedule
    # Decay takes the rate from there: with a rate of 0.5, weights go down by a twentieth.
    weight = keras.Variable([2.0])
    fixed.build([weight])
    fixed.apply([tf.constant([0.0])], [weight])
    assert weight.numpy().tolist() == pytest.approx([1.9])


def test_adams_moments_are_found_by_the_variable():
    optimizer = keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.75)
    weights = [keras.Variable([2.0]), keras.Variable([3.0])]
    optimizer.build(weights)
    optimizer.apply([tf.constant([2.0]), tf.constant([4.0])], weights)
    first, second = _upstream.adam_moments(optimizer, weights[1].value)
    assert (first.numpy().tolist(), second.numpy().tolist()) == ([2.0], [4.0])
    assert isinstance(first, tf.Variable) and first.handle is not None


def test_seed_states_are_those_that_layers_own():
    class Noisy(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="noisy")
            self.first = keras.random.SeedGenerator(1)
            self.others = [keras.random.SeedGenerator(2)]

    layer = Noisy()
    assert [(name, int(state.numpy()[0])) for name, state in _upstream.seed_states(layer)] == [
        ("noisy/seed_generator", 1),
        ("noisy/seed_generator", 2),
    ]


def test_kernels_of_xla_are_registered():
    @tf.function
    def traced(x):
        return tf.strings.length(tf.io.encode_png(x)) + tf.size(tf.matmul([[1.0]], [[2.0]]))

    graph = traced.get_concrete_function(tf.TensorSpec([1, 1, 1], tf.uint8)).graph
    found = _upstream.without_xla_kernel(graph.get_operations())
    assert {op.type for op in found} == {"EncodePng", "StringLength"}


def test_an_iterator_has_a_handle_and_is_read_in_this_thread():
    data = tf.data.Dataset.range(4).map(lambda i: {"i": i, "j": (2 * i, tf.ones([2]))})
    iterator = iter(data)

    @tf.function
    def two():
        return [_upstream.next_in_this_thread(iterator) for _ in range(2)]

    first, second = two()
    assert (first["i"], second["j"][0]) == (0, 2) and second["j"][1].shape == [2]
    assert next(iterator)["i"] == 2
    kinds = {op.type for op in two.get_concrete_function().graph.get_operations()}
    assert "IteratorGetNextSync" in kinds and "IteratorGetNext" not in kinds


def test_ops_with_random_state_are_known_by_their_definition():
    """A new one shows here."""
    buffer = session.TF_GetBuffer(session.TF_GetAllOpList())
    ops = op_def_pb2.OpList.FromString(buffer).op
    states = {op.name: state_by_definition(op) for op in ops}
    kernels = {name for name, state in states.items() if state == "kernel"}
    assert {name for name in kernels if not name.endswith("CandidateSampler")} == {
        *("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"),  # if there is dropout
        *("CudnnRNNBackprop", "CudnnRNNBackpropV2", "CudnnRNNBackpropV3"),
        *("Multinomial", "ParameterizedTruncatedNormal", "TruncatedNormal", "RandomCrop"),
        *("RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomStandardNormal"),
        *("RandomShuffle", "RandomShuffleQueue", "RandomShuffleQueueV2"),
        *("RandomUniform", "RandomUniformInt"),
        *("SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"),
    }
    assert {name for name, state in states.items() if state == "generator"} == {
        *("RngReadAndSkip", "RngSkip", "StatefulRandomBinomial", "StatefulStandardNormal"),
        *("StatefulStandardNormalV2", "StatefulTruncatedNormal", "StatefulUniform"),
        *("StatefulUniformFullInt", "StatefulUniformInt"),
    }
    variables = {name for name, state in states.items() if state == "variable"}
    assert {"AssignVariableOp", "ResourceApplyAdamWithAmsgrad", "ResourceScatterAdd"} <= variables
    assert not {name for name in variables if "Read" in name or "Gather" in name}


def test_captures_lead_to_handles_through_nested_functions():
    one, two = tf.Variable(1.0), tf.Variable(2.0)
    inner = tf.function(lambda: one * two)
    found = []

    @tf.function(autograph=False)
    def outer():
        def body(i):
            two.assign_add(1.0)
            found.append(_upstream.captured_handles(tf.compat.v1.get_default_graph()))
            return i + 1

        return tf.while_loop(lambda i: i < 2, body, [0]), inner()

    graph = outer.get_concrete_function().graph
    assert list(found[0].values()) == [id(two.handle)]
    assert set(_upstream.captured_handles(graph).values()) == {id(one.handle), id(two.handle)}
    (call,) = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    called = _upstream.called_graph(call, call.get_attr("f").name)
    assert "Mul" in {op.type for op in called.get_operations()}
    assert called.get_operations()[-1].traceback
    assert _upstream.called_graph(call, "nothing") is None


def test_a_data_set_tells_what_it_is_made_of():
    numbers = tf.data.Dataset.range(3)
    mapped = numbers.map(lambda x: x + 1, num_parallel_calls=2, deterministic=False)
    data = tf.data.Dataset.zip(mapped, numbers.shuffle(3)).batch(2)
    below = _upstream.datasets_below(data)
    assert {id(numbers), id(mapped)} <= {id(one) for one in below}
    graphs = [graph for one in below for graph in _upstream.dataset_graphs(one)]
    assert ["AddV2"] == [op.type for g in graphs for op in g.get_operations() if op.type == "AddV2"]
    assert [_upstream.dataset_order(one) for one in (mapped, numbers)] == ["false", "default"]
    assert _upstream.dataset_seeds(numbers) is None
    assert _upstream.dataset_seeds(numbers.shuffle(3, seed=5)) != (0, 0)
    tf.random.set_seed(None)
    assert _upstream.dataset_seeds(numbers.shuffle(3)) == (0, 0)


def test_op_determinism_is_known():
    assert _upstream.op_determinism() is False  # turning it on is for good


def test_global_generators_are_made_when_first_asked_for(monkeypatch):
    stateful = _upstream.stateful_random_ops
    monkeypatch.setattr(stateful, "global_generator", None)
    keras.backend.clear_session()  # Keras's
    assert _upstream.global_generators() == {}
    tf.random.get_global_generator().uniform([])
    keras.random.uniform([])
    assert set(_upstream.global_generators()) == {"tensorflow", "keras"}
    monkeypatch.setattr(stateful, "global_generator", None)
    assert set(_upstream.global_generators()) == {"keras"}
    made = _upstream.global_generators(make=["tensorflow"])["tensorflow"]
    assert made is tf.random.get_global_generator().state
