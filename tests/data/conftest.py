"""Settings for tests of data."""

from collections.abc import Callable

import pytest
import tensorflow as tf


class DataClock:
    """Time inside of `tf.data` that passes only while a data set makes a slow element."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def timestamp(self) -> tf.Tensor:
        """Returns the time. Traced; takes the place of `tf.timestamp`."""
        return tf.ensure_shape(tf.numpy_function(lambda: self._seconds, [], tf.float64), [])

    def slowed(self, numbers: tf.data.Dataset, seconds: Callable[[int], float]) -> tf.data.Dataset:
        """Returns a data set whose element i takes `seconds(i)`.

        Args:
          numbers: A data set of int64 scalars.
          seconds: How long a number takes. It must not be pulled in parallel.
        """

        def wait(i: int) -> int:
            self._seconds += seconds(int(i))
            return i

        return numbers.map(lambda i: tf.ensure_shape(tf.numpy_function(wait, [i], tf.int64), []))


@pytest.fixture
def data_clock(monkeypatch: pytest.MonkeyPatch) -> DataClock:
    """The time that `tfloss.data` reads while it pulls batches. Slow data don't sleep."""
    clock = DataClock()
    monkeypatch.setattr(tf, "timestamp", clock.timestamp)
    return clock
