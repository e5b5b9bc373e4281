"""Settings for all tests: TensorFlow on the CPU with 8 logical devices, quiet, with a fixed seed.

Data set iterators run without the autotuner, unless a test requests the fixture `autotuner`:
to close an iterator means to wait for the autotuner's thread, which can sleep for a minute.
"""

import os

# TensorFlow reads these variables once, when it is imported.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"

import logging
import signal
from collections.abc import Callable, Iterator

import keras
import pytest
import tensorflow as tf

from tfloss.data.distributed import without_autotune

# A shell starts background jobs with SIGINT ignored, and their children inherit that. Tests send
# SIGINT to themselves and to scripts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LOGICAL_CPUS = 8

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPUS,
)


_iterator = tf.data.Dataset.__iter__
tf.data.Dataset.__iter__ = lambda dataset: _iterator(without_autotune(dataset))


@pytest.fixture
def autotuner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the autotuner of data set iterators on, as TensorFlow does."""
    monkeypatch.setattr(tf.data.Dataset, "__iter__", _iterator)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages that tfloss logs while the test runs, in order."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tfloss")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def fresh_keras() -> None:
    """Resets the counters of layer names, and seeds every random state with 0."""
    keras.utils.clear_session(free_memory=False)  # garbage collection takes 0.1 s
    keras.utils.set_random_seed(0)


@pytest.fixture
def replicas() -> Callable[[int], tf.distribute.Strategy]:
    """`replicas(n)` returns the default strategy for n = 1, else one over n logical CPUs."""

    def make(count: int) -> tf.distribute.Strategy:
        if not 1 <= count <= LOGICAL_CPUS:
            raise ValueError(f"count must be 1 to {LOGICAL_CPUS}. Received: {count}")
        if count == 1:
            return tf.distribute.get_strategy()
        # Within one process, collective ops reject groups of different sizes.
        return tf.distribute.MirroredStrategy(
            [f"CPU:{index}" for index in range(count)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )

    return make
