"""What Keras's callbacks do, where only private attributes tell. Host code."""

import keras


def writes_at_batches(callback: keras.callbacks.TensorBoard) -> bool:
    """Returns whether a `TensorBoard` callback does anything at batches.

    It always has methods for batches. To call them, every step must be a call of its own, but by
    default they do nothing. Nothing public tells whether a profile was asked for.

    Args:
      callback: The callback.
    """
    profiles: bool = getattr(callback, "_should_trace")  # noqa: B009 - private
    return profiles or callback.write_steps_per_second or callback.update_freq != "epoch"
