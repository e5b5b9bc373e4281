"""The collectives of several workers."""

import pytest
import tensorflow as tf

from tests.fork import run_script
from tfloss import _upstream
from tfloss._upstream.collectives import received, sendable

pytestmark = pytest.mark.upstream

ABORT = """
import threading
import tensorflow as tf
from tfloss import _upstream

tf.constant(0)

def wait():
    # A group of two of which only one comes.
    return tf.raw_ops.CollectiveReduceV2(
        input=tf.ones([2]), group_size=2, group_key=1, instance_key=1, ordering_token=[],
        merge_op="Add", final_op="Id",
    )

threading.Timer(0.5, lambda: _upstream.abort_collectives("worker 1 was lost")).start()
for _ in range(2):  # the one that waits, and the next one
    try:
        wait()
    except tf.errors.UnavailableError as error:
        print("worker 1 was lost" in str(error))
print(float(tf.constant(1.0) + 1.0))
"""


def test_an_abort_wakes_a_collective_and_leaves_other_ops_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ABORT)
    done = run_script(script, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n2.0\n"), done.stderr


DTYPES = [tf.bool, tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32, tf.int64, tf.uint64]
DTYPES += [tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128]
DTYPES += [tf.dtypes.experimental.float8_e4m3fn, tf.dtypes.experimental.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_values_of_all_dtypes_can_be_sent(dtype):
    values = tf.cast(tf.constant([[1.0, -2.0, 0.0], [3.5, 100.0, 7.0]]), tf.complex128)
    values = tf.cast(values if dtype.is_complex else tf.math.real(values), dtype)
    sent = sendable(values)
    # As the op's own message lists them.
    assert sent.dtype in (tf.bool, tf.float32, tf.float16, tf.float64, tf.int32, tf.int64)
    found = received(sent, dtype)
    assert found.dtype == dtype and found.shape == values.shape
    assert found.numpy().tobytes() == values.numpy().tobytes()


def test_each_variable_is_described_before_it_is_created(replicas):
    strategy = replicas(2)
    found = []
    _upstream.before_variables(strategy, found.append)
    with strategy.scope():
        tf.Variable(tf.constant([[1.0, 2.0]]), name="one")
        tf.Variable(lambda: tf.zeros([3]), name="two", dtype=tf.float32, shape=[None])
        tf.Variable(tf.constant(3))
    tf.Variable(4.0, name="outside")
    assert found == [
        "variable one of shape (1, 2), float32",
        "variable two of shape (None,), float32",
        "variable without a name of shape (), int32",
    ]


def test_a_check_can_refuse_a_variable(replicas):
    strategy = replicas(2)

    def refuse(variable):
        raise ValueError(variable)

    _upstream.before_variables(strategy, refuse)
    with strategy.scope(), pytest.raises(ValueError, match="variable one"):
        tf.Variable(1.0, name="one")
