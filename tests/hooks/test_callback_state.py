import json

import keras
import numpy as np
import pytest

from tfloss.hooks.callback_state import CallbackState


class Counts(keras.callbacks.Callback):
    def __init__(self, patience):
        super().__init__()
        self.patience, self.seen, self.best, self.handle = patience, [], None, None


def test_what_has_changed_is_saved_and_settings_are_not():
    callback = Counts(patience=3)
    state = CallbackState(callback)
    callback.seen.append(0.5)
    callback.best = [np.float32([1, 2])]
    saved = json.loads(json.dumps(state.save()))
    assert set(saved) == {"seen", "best"}

    later = Counts(patience=9)
    CallbackState(later).restore(saved)
    assert later.patience == 9 and later.seen == [0.5]
    np.testing.assert_array_equal(later.best[0], [1, 2])


def test_min_delta_keeps_its_sign():
    """Keras turns it around when it chooses the comparison, which is after a restart again."""
    first = keras.callbacks.EarlyStopping("loss", min_delta=0.5)
    state = CallbackState(first)
    first.on_train_begin()
    first.set_model(keras.Model())
    first.on_epoch_end(0, {"loss": 3.0})
    assert first.min_delta == -0.5
    second = keras.callbacks.EarlyStopping("loss", min_delta=0.5)
    CallbackState(second).restore(state.save())
    assert second.best == 3.0 and second.min_delta == 0.5


def test_what_no_checkpoint_can_hold_is_named_once(recwarn):
    callback = Counts(1)
    state = CallbackState(callback)
    state.warn_of_the_rest()
    assert not recwarn
    callback.handle = object()
    with pytest.warns(UserWarning, match=r"can't hold Counts.handle \(object\)"):
        state.warn_of_the_rest()
    recwarn.clear()
    state.warn_of_the_rest()
    assert not recwarn
