"""A run that is killed while it fills the file of a cache goes on as if it had not been killed."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.hooks import Hook, SaveCheckpoint


class KilledError(Exception):
    pass


class Kill(Hook):
    every = tfloss.Every(steps=1)

    def after_step(self, step):
        if step == 7:
            raise KilledError


def train(folder, cache, steps, *hooks):
    cache.parent.mkdir(exist_ok=True)
    values = np.linspace(0.0, 1.0, 40, dtype=np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": values}).shuffle(40, seed=1)
    data = data.cache(str(cache)).batch(4).repeat()
    model = Line(lambda model, batch, y: tf.reduce_mean(y**2))
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.1), workdir=folder, hooks=hooks, jit=False
    )
    trainer.train(data, steps)
    return float(model.w)


@pytest.mark.parametrize("saved", [2, 6])
def test_the_resumed_run_is_the_same_to_the_bit(tmp_path, saved):
    whole = train(tmp_path / "whole", tmp_path / "a", 25)
    save = SaveCheckpoint(tfloss.Every(steps=saved))
    with pytest.raises(KilledError):
        train(tmp_path / "run", tmp_path / "killed" / "cache", 25, save, Kill())
    shutil.rmtree(tmp_path / "killed")  # what the message about the locked file says
    assert train(tmp_path / "run", tmp_path / "b", 25) == whole
