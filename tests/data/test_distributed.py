"""Each replica gets its part of a batch; what no strategy or TPU can use is refused."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data import Source
from tfloss.data.distributed import (
    as_dataset,
    check_tpu_spec,
    distribute,
    replica_spec,
    without_autotune,
)
from tfloss.errors import DataError

ONE = tf.distribute.get_strategy()


def test_a_data_set_is_what_it_is():
    data = tf.data.Dataset.range(3)
    assert as_dataset(data, ONE) is data


def test_a_source_becomes_a_data_set():
    source = Source(np.arange(4), batch_size=2, shuffle=False, epochs=1)
    assert [x.tolist() for x in as_dataset(source, ONE).as_numpy_iterator()] == [[0, 1], [2, 3]]


def test_a_function_gets_an_input_context(replicas):
    contexts = []

    def input_fn(context):
        contexts.append(context)
        return tf.data.Dataset.range(3)

    as_dataset(input_fn, replicas(2), per_worker=True)
    (context,) = contexts
    assert context.num_replicas_in_sync == 2
    assert (context.num_input_pipelines, context.input_pipeline_id) == (1, 0)


@pytest.mark.parametrize("data", [np.zeros(3), lambda context: [1, 2]])
def test_other_data_are_refused(data):
    with pytest.raises(DataError, match="data must be a tf.data.Dataset of batches"):
        as_dataset(data, ONE)


def test_on_one_replica_nothing_is_split():
    data = tf.data.Dataset.range(3)
    assert distribute(data, ONE) is data


@pytest.mark.parametrize("per_worker", [False, True])
@pytest.mark.parametrize("endless", [False, True])
def test_each_replica_gets_its_part_in_order(replicas, per_worker, endless):
    strategy = replicas(2)
    data = tf.data.Dataset.range(10).batch(4).take(2 if endless else 3)
    data = data.repeat() if endless else data
    iterator = iter(distribute(data, strategy, per_worker=per_worker))
    expected = [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[0, 1], [2, 3]] if endless else [[8], [9]]]
    for parts in expected:
        found = strategy.experimental_local_results(next(iterator))
        assert [part.numpy().tolist() for part in found] == parts


def test_the_autotuner_is_off_unless_its_user_has_set_it():
    data = tf.data.Dataset.range(3)
    assert without_autotune(data).options().autotune.enabled is False
    options = tf.data.Options()
    options.autotune.enabled = True
    assert without_autotune(data.with_options(options)).options().autotune.enabled is True


def test_a_tpu_needs_static_dense_numbers():
    check_tpu_spec({"x": tf.TensorSpec([4, 3])})
    spec = {
        "open": tf.TensorSpec([None, 3]),
        "text": tf.TensorSpec([4], tf.string),
        "ragged": tf.RaggedTensorSpec([4, None]),
    }
    with pytest.raises(DataError) as e:
        check_tpu_spec(spec)
    for part in (
        "batch['open'] has shape (None, 3)",
        "batch['text'] holds strings",
        "batch['ragged'] is a RaggedTensor",
    ):
        assert part in str(e.value)


def test_a_replicas_spec_leaves_the_number_of_examples_open(replicas):
    spec = {
        "dense": tf.TensorSpec([4, 3], tf.int32),
        "scalar": tf.TensorSpec([]),
        "ragged": tf.RaggedTensorSpec([4, None], tf.int64),
        "sparse": tf.SparseTensorSpec([4, 5]),
    }
    assert replica_spec(spec, ONE) is spec
    found = replica_spec(spec, replicas(2))
    assert found["dense"].shape.as_list() == [None, 3] and found["dense"].dtype == tf.int32
    assert found["scalar"] == spec["scalar"]
    assert found["ragged"] == tf.RaggedTensorSpec([None, None], tf.int64)
    assert found["sparse"].shape.as_list() == [None, 5]
