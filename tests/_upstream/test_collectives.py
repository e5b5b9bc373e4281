"""The collectives of several workers."""

import pytest
import tensorflow as tf

from tests.fork import run_script
from tfloss import _upstream

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
