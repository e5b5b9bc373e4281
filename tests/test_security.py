"""docs/security.md is true: what files of strangers can do, and what they can't."""

import base64
import io
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.checkpoint import load_manifest
from tfloss.checkpoint.manifest import write_manifest

DATA = rows([1.0, 2.0, 3.0, 4.0], 1)


def _trainer(workdir):
    model = Line(lambda model, batch, y: {"a": tf.reduce_mean(y)})
    hooks = [tfloss.hooks.SaveCheckpoint()]
    return tfloss.Trainer(
        model, keras.optimizers.SGD(0.1), workdir=workdir, hooks=hooks, jit=False, log_every=5
    )


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _rewrite(path, change):
    """Changes a checkpoint as a stranger can: with the right checksums."""
    manifest = load_manifest(path)
    (path / "manifest.json").unlink()
    change(manifest)
    write_manifest(
        path, {k: v for k, v in manifest.items() if k not in ("sha256", "format", "files")}
    )


@pytest.mark.parametrize("where", ["window.npz", "hooks"])
def test_a_pickle_in_a_checkpoint_is_not_loaded(tmp_path, where):
    marker = tmp_path / "marker"
    assert pickle.loads(pickle.dumps(Touch(marker))) and marker.exists()  # the pickle works
    marker.unlink()
    trainer = _trainer(tmp_path / "run")
    trainer.train(DATA, steps=3)

    def change(manifest):
        evil = np.array([Touch(marker)], object)
        if where == "window.npz":
            file = io.BytesIO()
            np.savez(file, heads=evil)
            (path / where).write_bytes(file.getvalue())
        else:
            data = base64.b64encode(pickle.dumps(evil)).decode()
            state = {"$type": "numpy", "dtype": "O", "shape": [1], "data": data}
            for name in manifest["extra"]["hooks"]:
                manifest["extra"]["hooks"][name] = {"evil": state}

    path = trainer.checkpoints.latest()
    _rewrite(path, change)
    with pytest.raises(ValueError, match="allow_pickle=False|OBJECT array"):
        _trainer(tmp_path / "run").train(DATA, steps=4)
    assert not marker.exists()


def test_a_saved_model_writes_files_when_it_is_loaded(tmp_path):
    """That is why one from a stranger must not be loaded."""
    marker = tmp_path / "marker"

    class Evil(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

        def _initialize(self):
            tf.io.write_file(str(marker), "x")

    module = tf.Module()
    module.evil = Evil()
    module.f = tf.function(lambda: (module.evil.resource_handle, 1)[1], [])
    tf.saved_model.save(module, str(tmp_path / "model"))
    marker.unlink(missing_ok=True)
    tf.saved_model.load(str(tmp_path / "model"))
    assert marker.exists()


def test_weights_of_a_stranger_are_loaded_from_a_copy_of_one_checkpoint(tmp_path):
    trainer = _trainer(tmp_path / "run")
    trainer.train(DATA, steps=3)
    trainer.checkpoints.latest().rename(tmp_path / "step_00000003")
    model = Line(lambda model, batch, y: {"a": tf.reduce_mean(y)})
    model({"x": tf.zeros([1])})
    assert tfloss.load_weights(model, tmp_path / "step_00000003").loaded
