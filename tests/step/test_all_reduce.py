"""Sums and maxima over replicas of tensors of any dtypes."""

import concurrent.futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.fork import run_script
from tfloss.distribute.launch import free_ports
from tfloss.step.all_reduce import max_over_replicas, sum_over_replicas

DTYPES = [tf.float32, tf.float64, tf.bfloat16, tf.float16, tf.complex64]


@pytest.fixture(scope="module")
def joining():
    """Two replicas with a reduction that joins the tensors of a call, as the default one does.

    The default one uses collective ops. Two strategies in one process would share their keys.
    """
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.HierarchicalCopyAllReduce()
    )


def _reduced(strategy, reduce, make):
    def replica():
        rank = tf.distribute.get_replica_context().replica_id_in_sync_group
        return reduce(make(tf.cast(rank, tf.float32)))

    found = tf.function(lambda: strategy.run(replica), autograph=False)()
    return [strategy.experimental_local_results(one) for one in found]


@pytest.mark.promise(36)
@pytest.mark.upstream
def test_the_default_reduction_refuses_several_dtypes(joining):
    def plain(tensors):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    with pytest.raises(TypeError, match="ConcatV2"):
        _reduced(joining, plain, lambda rank: [rank, tf.cast(rank, tf.float64)])


@pytest.mark.promise(36)
def test_tensors_of_several_dtypes_are_summed(joining):
    def make(rank):
        return [tf.cast(tf.fill([2], rank + index), d) for index, d in enumerate(DTYPES)]

    found = _reduced(joining, sum_over_replicas, make)
    for index, (both, dtype) in enumerate(zip(found, DTYPES, strict=True)):
        for one in both:
            assert one.dtype == dtype
            assert one.numpy().tolist() == [2 * index + 1, 2 * index + 1]


@pytest.mark.promise(36)
def test_half_precision_is_summed_in_float32(replicas):
    def make(rank):
        return [tf.cast(tf.where(rank > 0, 1.0, 256.0), tf.bfloat16)]

    ((one, *_),) = _reduced(replicas(4), sum_over_replicas, make)
    # 259, rounded once. In bfloat16, 256 + 1 is 256.
    assert float(one) == 260.0


def test_sparse_gradients_of_several_dtypes_are_joined(joining):
    def make(rank):
        row = tf.cast(rank, tf.int32)[None]
        return [
            tf.IndexedSlices(tf.cast([[rank + 1.0]], dtype), row, tf.constant([2, 1]))
            for dtype in (tf.float32, tf.float64, tf.bfloat16)
        ]

    for both in _reduced(joining, sum_over_replicas, make):
        for one in both:
            assert tf.convert_to_tensor(one).numpy().ravel().tolist() == [1.0, 2.0]


def test_maxima_of_each_element(joining):
    def make(rank):
        return [
            tf.stack([rank, -rank]),
            tf.cast(rank - 3.0, tf.float64),
            tf.reshape(tf.range(6.0), [2, 3]) * (1.0 - 2.0 * rank),
            tf.cast(rank, tf.bfloat16),
        ]

    found = _reduced(joining, max_over_replicas, make)
    expected = [[1.0, 0.0], -2.0, np.arange(6.0).reshape(2, 3).tolist(), 1.0]
    for both, value in zip(found, expected, strict=True):
        for one in both:
            assert one.numpy().tolist() == value
    assert [both[0].dtype for both in found] == [tf.float32, tf.float64, tf.float32, tf.bfloat16]


SCRIPT = Path(__file__).with_name("collectives.py")
MORE = ["1,float64", "4,bfloat16"]


def _counted(*arguments, **environment):
    done = run_script(SCRIPT, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "," in line and line[0].isdigit()]


@pytest.mark.parametrize(
    "cases", [["1,float32", "4,float32"], pytest.param(MORE, marks=pytest.mark.slow)]
)
def test_each_dtype_is_reduced_by_one_collective_however_many_micro_batches(cases):
    """Another one is the sum of `global_mean`, which the forward pass needs."""
    found = _counted("mirrored", *cases)
    assert found == [f"{3 if 'float64' in case else 2} {case}" for case in cases]


@pytest.mark.slow
def test_two_workers_reduce_by_as_many_collectives():
    cases = ["1,float32", "4,float32", *MORE]
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                _counted,
                "multi_worker",
                *cases,
                TFLOSS_WORKERS=addresses,
                JOB_COMPLETION_INDEX=str(rank),
                TF_CONFIG="",
            )
            for rank in range(2)
        ]
    for run in runs:
        assert run.result() == [f"{3 if 'float64' in case else 2} {case}" for case in cases]
