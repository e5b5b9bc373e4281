"""Errors of TensorFlow and Keras are still recognised."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_find_cause_returns_the_error_that_was_raised():
    class Model(keras.Model):
        def call(self, x):
            raise KeyError("labels")

    with pytest.raises(Exception) as e:
        tf.function(lambda x: Model()(x))(tf.zeros([1]))
    found = _upstream.find_cause(e.value, KeyError)
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
    lines, inputs = _upstream.failed_numerics_check(e.value)
    assert [one.numpy().tolist() for one in inputs] == [[1.0, -2.0], [4.0, 0.0]]
    assert "RealDiv" in lines[0] or "truediv" in lines[0], lines
    assert any("dtype:" in line for line in lines) and any("shape:" in line for line in lines)
    assert _upstream.failed_numerics_check(KeyError()) == ([], [])


def test_synchronising_replicas_in_a_nested_function_names_merge_call(replicas):
    strategy = replicas(2)

    def replica():
        context = tf.distribute.get_replica_context()
        nested = tf.function(lambda: context.all_reduce("sum", tf.constant(1.0)))
        return nested()

    with pytest.raises(RuntimeError) as e:
        tf.function(lambda: strategy.run(replica))()
    assert _upstream.caused_by_merge_call(e.value)
    assert not _upstream.caused_by_merge_call(RuntimeError("another error"))


def test_concatenating_unequal_shapes_names_the_op():
    concat = tf.function(lambda x, y: tf.concat([x, y], 0), reduce_retracing=True)
    spec = tf.TensorSpec([None, None])
    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        concat.get_concrete_function(spec, spec)(tf.zeros([1, 2]), tf.zeros([1, 3]))
    assert _upstream.caused_by_unequal_shapes_in_concat(e.value)
    other = tf.errors.InvalidArgumentError(None, None, "another error")
    assert not _upstream.caused_by_unequal_shapes_in_concat(other)


def test_the_message_of_a_graph_tells_whether_the_iterator_failed():
    def read(i):
        return tf.strings.to_number(tf.where(i == 2, "corrupt", tf.strings.as_string(i)))

    @tf.function(autograph=False)
    def step(iterator, most):
        value = next(iterator)
        tf.debugging.assert_less(value, most)
        return value

    for bad, most, expected in ((True, 9.0, True), (False, 2.0, False)):
        data = tf.data.Dataset.range(5)
        iterator = iter(data.map(read) if bad else data.map(lambda i: tf.cast(i, tf.float32)))
        with pytest.raises(tf.errors.InvalidArgumentError) as e:
            for _ in range(5):
                step(iterator, tf.constant(most))
        assert _upstream.raised_by_iterator(e.value) == expected


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("[[{{node StringToNumber}}]]\n\t [[while/body/_1/while/IteratorGetNext]]", True),
        ("[[{{node IteratorGetNext_2}}]]", True),
        ("[[{{node MultiDeviceIteratorGetNextFromShard}}]]", True),
        ("[[{{node net/embedding_lookup}}]]\n\t [[IteratorGetNext/_4]]", False),
        ("[x (IteratorGetNext:0) = ] [2]\n\t [[{{node assert_less/Assert}}]]", False),
        ("[[{{node net/embedding_lookup}}]]", False),
    ],
)
def test_a_tensor_of_an_iterator_is_not_the_iterator(named, expected):
    error = tf.errors.InvalidArgumentError(None, None, named)
    assert _upstream.raised_by_iterator(error) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.numpy(),
        lambda x: np.mean(x),
        lambda x: float(x),
        lambda x: f"{x:.3f}",
        lambda x: 1 if x > 0 else 2,
        lambda x: list(range(x)),
    ],
)
def test_the_value_of_a_symbolic_tensor(use):
    with pytest.raises(Exception) as e:
        tf.function(use, autograph=False)(tf.constant(1))
    assert _upstream.caused_by_symbolic_tensor(e.value)
    assert not _upstream.caused_by_symbolic_tensor(ValueError("Dimensions must be equal"))


@pytest.mark.upstream
@pytest.mark.parametrize("batch", [tf.ones([2]), (tf.ones([2]),), [tf.ones([2])], tf.Variable([1])])
def test_a_name_as_an_index(batch):
    for read in (lambda: batch["x"], tf.function(lambda: batch["x"], autograph=False)):
        with pytest.raises(TypeError) as e:
            read()
        assert _upstream.caused_by_name_as_index(e.value)
    with pytest.raises(TypeError) as e:
        batch[1.5]
    assert not _upstream.caused_by_name_as_index(e.value)
    assert not _upstream.caused_by_name_as_index(ValueError("are valid indices, got 'x'"))


def test_an_op_errors_message_can_be_replaced():
    error = tf.errors.InvalidArgumentError(None, None, "long")
    _upstream.replace_message(error, "short")
    assert error.message == str(error) == "short"


@pytest.mark.upstream
@pytest.mark.parametrize("error", [KeyError("label"), ValueError("label")])
def test_autograph_writes_a_traceback_into_the_message(error):
    def function(x):
        if x is not None:
            raise error
        return x

    with pytest.raises(type(error), match="in user code:") as e:
        tf.function(function)(1.0)
    _upstream.replace_message(e.value, "short")
    assert str(e.value) == "short"


def test_numbers_of_strings():
    with pytest.raises(tf.errors.UnimplementedError) as caught:
        tf.function(lambda x: tf.cast(x, tf.int64))(tf.constant(["1"]))
    assert _upstream.caused_by_strings(caught.value)
    assert not _upstream.caused_by_strings(tf.errors.InternalError(None, None, "lost"))
