"""What TensorFlow and Keras do by themselves on several workers, and tfloss doesn't."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tfloss.distribute.launch import free_ports

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

STRATEGY = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
print("begins", flush=True)
strategy = tf.distribute.MultiWorkerMirroredStrategy()
print("connected", flush=True)
"""
FIT = (
    STRATEGY
    + """
import keras
with strategy.scope():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
data = tf.data.Dataset.from_tensors((tf.ones([4, 1]), tf.ones([4, 1]))).repeat(4)
model.fit(data, steps_per_epoch=2, verbose=0)
"""
)


@contextlib.contextmanager
def worker(index, ports, code):
    """A process that is one of the workers; killed at the end."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.promise(17)
def test_an_absent_worker_is_waited_for_and_sigterm_ignored():
    with worker(0, free_ports(2), STRATEGY) as process:
        assert process.stdout.readline() == "begins\n"
        time.sleep(5.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5.0)


@pytest.mark.promise(18)
def test_fit_fails():
    ports = free_ports(2)
    with worker(0, ports, FIT) as one, worker(1, ports, FIT) as other:
        for process in (one, other):
            assert process.wait(120.0) != 0
        assert "PerReplica" in one.stderr.read()
