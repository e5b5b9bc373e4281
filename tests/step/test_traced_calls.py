"""What tracing finds out beside the tensors, and functions compiled by XLA."""

import pytest
import tensorflow as tf

from tfloss.step.traced_calls import compiled, split_static


def test_the_static_result_of_each_call_is_kept_beside_its_tensors():
    double, found = split_static(lambda x: ({"y": 2 * x}, f"of {x}"))

    assert found == []
    assert [double(3), double(5)] == [{"y": 6}, {"y": 10}]
    assert found == ["of 3", "of 5"]


def test_inside_a_function_each_trace_has_a_static_result():
    double, found = split_static(lambda x: (2.0 * x, x.shape.rank))
    traced = tf.function(double, autograph=False)

    assert traced(tf.constant([1.0])).numpy().tolist() == [2.0]
    assert traced(tf.constant([3.0])).numpy().tolist() == [6.0]
    assert found == [1]
    traced(tf.constant([[1.0]]))
    assert found == [1, 2]


def test_each_replica_has_a_static_result(replicas):
    def replica():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.constant(1.0), int(tf.get_static_value(index))

    tensors_only, found = split_static(replica)
    strategy = replicas(2)
    tf.function(lambda: strategy.run(tensors_only), autograph=False)()

    assert sorted(found) == [0, 1]


def test_an_error_leaves_no_static_result():
    def fail():
        raise ValueError("wrong")

    tensors_only, found = split_static(fail)
    with pytest.raises(ValueError, match="wrong"):
        tensors_only()
    assert found == []


def test_a_compiled_function_is_compiled_and_computes_the_same():
    function = compiled(lambda x, y: x * y + 1.0)
    x, y = tf.constant([1.0, 2.0]), tf.constant(3.0)

    assert function(x, y).numpy().tolist() == [4.0, 7.0]
    assert function.get_concrete_function(x, y).function_def.attr["_XlaMustCompile"].b


def test_what_xla_can_not_compile_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="AsString"):
        compiled(lambda x: tf.strings.length(tf.strings.as_string(x)))(tf.constant(1))


@pytest.mark.parametrize("name", ["stateless_uniform", "stateless_normal"])
def test_random_numbers_are_those_of_the_graph(name):
    def numbers(seed):
        return getattr(tf.random, name)([16], seed)

    seed = tf.constant([3, 7])
    expected = tf.function(numbers, autograph=False)(seed).numpy().tolist()

    assert compiled(numbers)(seed).numpy().tolist() == pytest.approx(expected, rel=1e-6)
