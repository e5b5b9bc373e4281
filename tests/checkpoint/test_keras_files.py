"""Files that Keras wrote, loaded by the variables of a model: all or none."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.checkpoint.nets import CONTAINERS, built, scramble
from tests.checkpoint.test_load_weights import _model, _values
from tfloss.checkpoint import named_variables
from tfloss.checkpoint.load_weights import load_weights
from tfloss.errors import CheckpointError


@pytest.mark.parametrize("kind", [*CONTAINERS, "sequential", "functional"])
def test_every_container(kind, tmp_path):
    """Raw variables are not in the file: they are named, and keep their values."""
    model, _ = built(kind)
    scramble(named_variables(model))
    wanted = {k: v.numpy() for k, v in named_variables(model).items()}
    model.save_weights(tmp_path / "a.weights.h5")
    fresh, _ = built(kind)
    raw = [] if kind in ("sequential", "functional") else ["net/count", "net/queues/right"]
    if raw:
        with pytest.raises(CheckpointError, match="(?s)not in the file: net/count, .*raw tf.Var"):
            load_weights(fresh, tmp_path / "a.weights.h5")
    report = load_weights(fresh, tmp_path / "a.weights.h5", strict=not raw)
    assert len(report.loaded) == 12 and report.missing[:2] == raw and not report.unexpected
    for name in report.loaded:
        np.testing.assert_array_equal(named_variables(fresh)[name].numpy(), wanted[name])


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras"])
def test_a_compiled_model_that_was_trained(name, tmp_path):
    model = _model(["encoder", "head"])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones([4, 2]), np.ones([4, 2]), verbose=0)
    model.save(tmp_path / name) if name.endswith(".keras") else model.save_weights(tmp_path / name)
    fresh = _model(["encoder", "head"])
    for one in (fresh, model):  # one that is not compiled, and one that is
        report = load_weights(one, tmp_path / name)
        assert [v.split("/")[-2] for v in report.loaded] == ["encoder", "encoder", "head", "head"]
    assert _values(fresh) == _values(model)


@pytest.fixture
def path(tmp_path):
    _model(["encoder", "head"]).save_weights(tmp_path / "a.weights.h5")
    return tmp_path / "a.weights.h5"


def test_what_does_not_fit_is_named_and_nothing_is_loaded(path):
    for names, message in (
        (["encoder", "head", "new"], "not in the file: m/new/kernel, m/new/bias"),
        (["encoder"], "only in the file: layers/dense_1/vars/0, layers/dense_1/vars/1"),
    ):
        model = _model(names)
        for variable in model.variables:
            variable.assign(tf.zeros_like(variable))
        with pytest.raises(CheckpointError, match=f"(?s){message}.*Nothing was loaded. In a file"):
            load_weights(model, path)
        assert set(_values(model).values()) == {0.0}
    report = load_weights(_model(["encoder", "head"], units=2), path, strict=False)
    assert len(report.loaded) == 4
    wide = _model(["encoder", "head"], units=3)
    with pytest.raises(CheckpointError, match=r"m/encoder/kernel \(saved \[2, 2\], here \[2, 3\]"):
        load_weights(wide, path)


def test_renamed_layers_are_found_by_their_place(path):
    model = _model(["a", "b"])
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    load_weights(model, path)
    assert list(_values(model).values()) == [1.0, 2.0, 3.0, 4.0]


def test_layers_that_have_changed_places_are_refused(path):
    """Keras loads one for the other without a word."""
    model = _model(["head", "encoder"])
    model.load_weights(path)
    assert _values(model)["m/head/kernel"] == 1.0  # the encoder's
    before = _values(model)
    with pytest.raises(CheckpointError, match="another order: 'layers/dense' is layer 'encoder'"):
        load_weights(model, path)
    assert _values(model) == before
    swap = {"layers/dense": "layers/dense_1", "layers/dense_1": "layers/dense"}
    load_weights(model, path, rename=swap)
    assert _values(model)["m/head/kernel"] == 3.0 and _values(model)["m/encoder/kernel"] == 1.0


def test_lora_layers_store_what_they_have_merged(path, tmp_path):
    tuned = _model(["encoder", "head"])
    tuned.layers[0].enable_lora(1)
    tuned.layers[0].lora_kernel_a.assign([[1.0], [2.0]])
    tuned.layers[0].lora_kernel_b.assign([[3.0, 4.0]])
    tuned.save_weights(tmp_path / "lora.weights.h5")
    plain, again = _model(["encoder", "head"]), _model(["encoder", "head"])
    again.layers[0].enable_lora(1)
    for model in (plain, again):
        report = load_weights(model, tmp_path / "lora.weights.h5")
        assert not report.missing + report.unexpected + report.mismatched
        np.testing.assert_allclose(model.layers[0].kernel, [[4.0, 5.0], [7.0, 9.0]])
    assert "m/encoder/own" in report.loaded
    load_weights(again, path)
    np.testing.assert_array_equal(again.layers[0].kernel, np.full([2, 2], 1.0))


class Doubled(keras.layers.Layer):
    """A layer that stores something else than its variable."""

    key = "twice"

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(2,))

    def call(self, x):
        return x * self.w

    def save_own_variables(self, store):
        store[self.key] = 2.0 * self.w.numpy()

    def load_own_variables(self, store):
        self.w.assign(store[self.key] / 2.0)


def test_a_layer_that_stores_in_its_own_way(tmp_path):
    def build():
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential([Doubled(name="d"), keras.layers.Dense(2, name="e")], name="m")
        model.build((None, 2))
        return model

    model = build()
    model.layers[0].w.assign([3.0, 4.0])
    model.save_weights(tmp_path / "a.weights.h5")
    fresh = build()
    assert load_weights(fresh, tmp_path / "a.weights.h5").loaded[-1] == "m/d/own"
    np.testing.assert_array_equal(fresh.layers[0].w, [3.0, 4.0])
    fresh.layers[0].key = "other"
    with pytest.raises(CheckpointError, match=r"m/d/own \(saved \{'twice': .2,.\}, here \{'other'"):
        load_weights(fresh, tmp_path / "a.weights.h5")


def test_a_vocabulary_is_not_in_the_file(tmp_path):
    words = keras.Input((), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")
    model = keras.Model(words, keras.layers.Embedding(3, 2)(lookup(words)), name="m")
    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.warns(UserWarning, match="has no vocabularies.* unchecked: 'm/lookup/preproc"):
        load_weights(model, tmp_path / "a.weights.h5")


@pytest.mark.parametrize("name", ["b.weights.h5", "b.keras"])
def test_corrupt_files(name, path):
    broken = path.with_name(name)
    for content in (b"", b"no such kind of file", path.read_bytes()[:3000]):
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} can't be read, so it is corrupt"):
            load_weights(_model(["encoder", "head"]), broken)
