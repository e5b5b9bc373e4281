import keras
import pytest

from tfloss import _upstream


@pytest.mark.upstream
@pytest.mark.parametrize(
    ("options", "writes"),
    [
        ({}, False),
        ({"histogram_freq": 1}, False),
        ({"update_freq": 10}, True),
        ({"update_freq": "batch"}, True),
        ({"write_steps_per_second": True}, True),
        ({"profile_batch": 2}, True),
    ],
)
def test_what_a_tensorboard_callback_does_at_batches(options, writes):
    assert bool(_upstream.writes_at_batches(keras.callbacks.TensorBoard(**options))) == writes


@pytest.mark.upstream
def test_the_methods_for_batches_do_nothing_by_default(tmp_path):
    callback = keras.callbacks.TensorBoard(tmp_path)
    callback.set_model(keras.Model())
    callback.on_train_begin()
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0, {"loss": 1.0})
    callback.on_train_end()
    sizes = {path.stat().st_size for path in tmp_path.rglob("*tfevents*")}
    assert len(sizes) <= 1 and sum(sizes) < 100  # the head of the file only
