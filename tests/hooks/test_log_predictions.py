import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.errors import DataError
from tfloss.hooks import Every, LogPredictions, TensorBoard

X = np.array([0.0, 0.2, 0.4, 1.0], np.float32)  # two batches of two


def _dataset():
    return tf.data.Dataset.from_tensor_slices({"x": X}).batch(2)


def _source():
    return tfloss.data.Source({"x": X}, batch_size=2, shuffle=False, epochs=1)


def _endless_source():
    return tfloss.data.Source({"x": X}, batch_size=2, shuffle=False)


def _input_function():
    return lambda context: _dataset()


def _draw(batch, predictions):
    """One image an example: a pixel of `x` and a pixel of the prediction."""
    return np.stack([batch["x"], predictions["y"]], 1)[:, None, :, None]


def _train(tmp_path, hook, steps, strategy=None):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = Line(lambda model, batch, y: {"loss": model.w * tf.reduce_mean(batch["x"])})
        optimizer = keras.optimizers.SGD(0.25)  # w is 1, 0.75, 0.5
    trainer = tfloss.Trainer(
        model, optimizer, strategy=strategy, hooks=[hook, TensorBoard(tmp_path)],
        default_hooks=False,
    )  # fmt: skip
    return trainer.train(rows(np.ones([4]), 4), steps=steps)


def _pictures(logdir):
    """`[(tag, step, images uint8)]` of all event files."""
    found = []
    for path in logdir.glob("*tfevents*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    _, _, *encoded = tf.make_ndarray(value.tensor)
                    images = np.stack([tf.io.decode_png(one) for one in encoded])
                    found.append((value.tag, event.step, images))
    return found


@pytest.mark.parametrize("make", [_dataset, _source, _endless_source, _input_function])
@pytest.mark.parametrize("count", [1, 2])
def test_predictions_for_the_first_batch_of_all_that_evaluate_takes(
    tmp_path, replicas, make, count
):
    hook = LogPredictions("val/line", make(), _draw, every=Every(steps=1))
    _train(tmp_path, hook, 2, replicas(count))
    pictures = _pictures(tmp_path)
    assert [(tag, step) for tag, step, _ in pictures] == [("val/line", 1), ("val/line", 2)]
    for (_, _, images), w in zip(pictures, (0.75, 0.5), strict=True):
        expected = np.stack([X[:2], w * X[:2]], 1)[:, None, :, None]
        assert images.shape == (2, 1, 2, 1)
        np.testing.assert_allclose(images / 255, expected, atol=1 / 255)


def test_without_a_trigger_it_draws_at_the_end_only(tmp_path):
    _train(tmp_path, LogPredictions("line", _dataset(), _draw), 2)
    assert [step for _, step, _ in _pictures(tmp_path)] == [2]


def test_a_drawing_that_fails_is_reported_and_training_continues(tmp_path):
    hook = LogPredictions("fails", _dataset(), lambda batch, predictions: batch["x"])
    with pytest.warns(UserWarning, match="Summary 'fails' can't be drawn"):
        assert _train(tmp_path, hook, 1).step == 1
    assert _pictures(tmp_path) == []


def test_other_data_fail_before_the_first_step(tmp_path):
    with pytest.raises(DataError, match="got ndarray"):
        _train(tmp_path, LogPredictions("line", X, _draw), 1)


def test_a_bare_number_is_no_trigger():
    with pytest.raises(ValueError, match=r"LogPredictions: every=10 .* Every\(steps=10\)"):
        LogPredictions("line", _dataset(), _draw, every=10)  # pyright: ignore[reportArgumentType]
