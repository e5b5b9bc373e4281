"""What every test gets: a quiet CPU-only TensorFlow with 8 logical devices, and a fixed seed.

Iterators have no autotuner, unless a test asks for it: closing one, which may happen in any
later test, waits for its thread, up to a minute.
"""

import os

# TensorFlow reads these once, when it is imported, so they come before it.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"

import logging
from collections.abc import Callable, Iterator

import keras
import pytest
import tensorflow as tf

from tfloss.data.distributed import without_autotune

LOGICAL_CPUS = 8

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPUS,
)


_iterator = tf.data.Dataset.__iter__
tf.data.Dataset.__iter__ = lambda dataset: _iterator(without_autotune(dataset))


@pytest.fixture
def autotuner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterators are as TensorFlow makes them."""
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
    """Layer names count from nothing again and every random state starts at seed 0."""
    keras.utils.clear_session(free_memory=False)  # collecting garbage costs 0.1 s a test
    keras.utils.set_random_seed(0)


@pytest.fixture
def replicas() -> Callable[[int], tf.distribute.Strategy]:
    """`replicas(n)`: the default strategy for n = 1, else a mirrored one over n logical CPUs."""

    def make(count: int) -> tf.distribute.Strategy:
        if not 1 <= count <= LOGICAL_CPUS:
            raise ValueError(f"The tests have 1 to {LOGICAL_CPUS} replicas. Received: {count}")
        if count == 1:
            return tf.distribute.get_strategy()
        # Collective ops refuse groups of different sizes in one process.
        return tf.distribute.MirroredStrategy(
            [f"CPU:{index}" for index in range(count)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )

    return make
