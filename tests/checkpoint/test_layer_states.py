import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory, named_layer_states, named_variables
from tfloss.checkpoint.layer_states import AssetsState
from tfloss.checkpoint.load_weights import load_weights
from tfloss.checkpoint.table_states import StringState
from tfloss.errors import CheckpointError

WORDS, NUMBERS = tf.constant(["a", "b", "b", "c", "c", "c"]), tf.constant([1.0, 2.0, 3.0, 4.0])


class Around(keras.Model):
    """A model of one layer that may take anything."""

    def __init__(self, layer):
        super().__init__(name="m")
        self.layer = layer
        self.built = True

    def call(self, x):
        return self.layer(x)


def parts(model):
    return {
        f"model/{k}": v for k, v in (named_variables(model) | named_layer_states(model)).items()
    }


def fresh(layer):
    keras.utils.clear_session(free_memory=False)
    return Around(layer())


def saved(tmp_path, model):
    directory = CheckpointDirectory(tmp_path)
    return directory, directory.save(1, parts(model))


def adapted(layer, data):
    layer.adapt(data)
    return layer


LAYERS = {
    "strings": (keras.layers.StringLookup, {}, WORDS, ["c", "?", "a"]),
    "integers": (keras.layers.IntegerLookup, {}, tf.constant([7, 7, 9]), [9, 7, 1]),
    "counts": (keras.layers.StringLookup, {"output_mode": "count"}, WORDS, [["c", "a", "?"]]),
    "weights": (keras.layers.StringLookup, {"output_mode": "tf_idf"}, WORDS, [["c", "a", "?"]]),
    "text": (keras.layers.TextVectorization, {}, tf.constant(["B a", "c c"]), ["c b", "a?"]),
    "bins": (keras.layers.Discretization, {"num_bins": 3}, NUMBERS, [[0.0, 2.5, 9.0]]),
}


@pytest.mark.promise(43)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_has_not_adapted_takes_what_was_saved(tmp_path, kind):
    layer, options, data, question = LAYERS[kind]
    model = fresh(lambda: adapted(layer(name="l", **options), data))
    expected = model(tf.constant(question)).numpy()
    directory, path = saved(tmp_path, model)
    for restore in (lambda m: directory.restore(path, parts(m)), lambda m: load_weights(m, path)):
        other = fresh(lambda: layer(name="l", **options))
        restore(other)
        np.testing.assert_array_equal(other(tf.constant(question)), expected)


@pytest.mark.promise(43)
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            lambda: keras.layers.StringLookup(vocabulary=["a", "b"], name="l"),
            lambda: keras.layers.StringLookup(vocabulary=["b", "a"], name="l"),
            r"l/preprocessing \(vocabulary differs: entry 1 was 'a', here 'b'\)",
        ),
        (
            lambda: keras.layers.IntegerLookup(vocabulary=[5, 6], name="l"),
            lambda: keras.layers.IntegerLookup(vocabulary=[5, 6, 7], name="l"),
            "saved with 3 vocabulary entries, here 4",
        ),
        (
            lambda: keras.layers.TextVectorization(vocabulary=["a", "b"], name="l"),
            lambda: keras.layers.TextVectorization(vocabulary=["b", "a"], name="l"),
            "vocabulary differs: entry 2 was 'a', here 'b'",
        ),
        (
            lambda: keras.layers.TextVectorization(vocabulary=["a"], name="l"),
            lambda: keras.layers.TextVectorization(vocabulary=["a"], standardize=None, name="l"),
            "saved with standardize='lower_and_strip_punctuation', here None",
        ),
        (
            lambda: keras.layers.StringLookup(vocabulary=["a"], num_oov_indices=2, name="l"),
            lambda: keras.layers.StringLookup(vocabulary=["a"], num_oov_indices=3, name="l"),
            "saved with num_oov_indices=2, here 3",
        ),
        (
            lambda: keras.layers.Discretization(bin_boundaries=[0.0, 1.0], name="l"),
            lambda: keras.layers.Discretization(bin_boundaries=[0.0, 2.0], name="l"),
            "bin boundaries differs: entry 1 was 1.0, here 2.0",
        ),
        (
            lambda: keras.layers.Hashing(8, salt=1, name="l"),
            lambda: keras.layers.Hashing(8, salt=2, name="l"),
            "saved with salt=",
        ),
        (
            lambda: keras.layers.Normalization(mean=1.0, variance=2.0, name="l"),
            lambda: keras.layers.Normalization(mean=1.0, variance=3.0, name="l"),
            "saved with variance=2.0, here 3.0",
        ),
    ],
)
def test_another_vocabulary_or_configuration_is_refused(tmp_path, before, after, message):
    model = fresh(before)
    directory, path = saved(tmp_path, model)
    directory.restore(path, parts(fresh(before)))
    other = fresh(after)
    with pytest.raises(CheckpointError, match=f"(?s){message}.*Nothing was restored"):
        directory.restore(path, parts(other))
    with pytest.raises(CheckpointError, match=f"(?s){message}.*Nothing was loaded"):
        load_weights(other, path)
    report = load_weights(other, path, strict=False)
    assert len(report.mismatched) == 1 and "l/preprocessing" in report.mismatched[0]


@pytest.mark.upstream
@pytest.mark.promise(43)
def test_upstream_loads_weights_under_another_vocabulary(tmp_path):
    file = tmp_path / "m.weights.h5"
    fresh(lambda: keras.layers.StringLookup(vocabulary=["a", "b"])).save_weights(file)
    other = fresh(lambda: keras.layers.StringLookup(vocabulary=["b", "a"]))
    other.load_weights(file)
    assert other(tf.constant(["a"])).numpy() == [2]  # it was 1


@pytest.mark.promise(43)
def test_constants_made_of_variables_are_made_again(tmp_path):
    data = np.array([[1.0], [3.0]], np.float32)  # mean 2, variance 1
    model = fresh(lambda: adapted(keras.layers.Normalization(name="l"), data))
    _, path = saved(tmp_path, model)
    other = fresh(lambda: keras.layers.Normalization(name="l"))
    other.layer.build((None, 1))
    load_weights(other, path)
    np.testing.assert_allclose(other(data), [[-1.0], [1.0]])


@pytest.mark.upstream
@pytest.mark.promise(43)
def test_upstream_restores_the_variables_of_a_normalization_only(tmp_path):
    data = np.array([[1.0], [3.0]], np.float32)
    model = fresh(lambda: adapted(keras.layers.Normalization(name="l"), data))
    path = tf.train.Checkpoint(model).save(str(tmp_path / "c"))
    other = fresh(lambda: keras.layers.Normalization(name="l"))
    other.layer.build((None, 1))
    tf.train.Checkpoint(other).restore(path).assert_existing_objects_matched()
    np.testing.assert_allclose(other(data), data)


class Counting(keras.layers.Layer):
    """Keeps an array that is no variable, a constant made of its variable, and a file."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen, self.text = np.zeros(2, np.int64), "nothing"
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")
        self.twice = 0.0

    def save_own_variables(self, store):
        store["w"], store["seen"] = self.w, self.seen

    def load_own_variables(self, store):
        self.w.assign(store["w"])
        self.seen, self.twice = np.asarray(store["seen"]), 2 * float(store["w"])

    def save_assets(self, path):
        with open(f"{path}/text", "w") as file:
            file.write(self.text)

    def load_assets(self, path):
        with open(f"{path}/text") as file:
            self.text = file.read()


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_layer_saves_by_methods_of_its_own(tmp_path, replicas, number):
    with replicas(number).scope():
        model = Around(Counting(name="l"))
        model.layer.w.assign(3.0)
        model.layer.seen, model.layer.text = np.array([4, 5]), "some text\0"
        directory, path = saved(tmp_path, model)
        other = Around(Counting(name="l"))
        directory.restore(path, parts(other))
    layer = other.layer
    assert layer.seen.tolist() == [4, 5] and layer.twice == 6.0 and layer.text == "some text\0"
    assert layer.w.numpy() == 3.0


@pytest.mark.parametrize("name", ["../victim", "{}/victim", "a/../../victim", "../\udcff"])
def test_a_layer_s_files_stay_in_its_folder(tmp_path, name):
    """A checkpoint of somebody else may hold any names."""
    victim, name = tmp_path / "victim", name.format(tmp_path)
    victim.write_text("mine")
    model = fresh(lambda: Counting(name="l"))
    states = parts(model)
    (key,) = (k for k, v in states.items() if isinstance(v, AssetsState))
    other = StringState()
    other.read_value = lambda: tf.constant([os.fsencode(name), b"theirs"], tf.string)
    directory = CheckpointDirectory(tmp_path / "c")
    path = directory.save(1, {**states, key: other})
    with pytest.raises(CheckpointError, match="as a file, which is outside of the layer's folder"):
        directory.restore(path, parts(fresh(lambda: Counting(name="l"))))
    assert victim.read_text() == "mine"


def test_an_own_state_of_another_layer_is_refused(tmp_path):
    class More(Counting):
        def save_own_variables(self, store):
            super().save_own_variables(store)
            store["more"] = np.zeros(1)

    directory, path = saved(tmp_path, fresh(lambda: Counting(name="l")))
    with pytest.raises(CheckpointError, match=r"l/own .*saved with \['seen'\]"):
        directory.restore(path, parts(fresh(lambda: More(name="l"))))


def test_a_lora_of_an_own_dense_layer_is_restored_as_it_was(tmp_path):
    class Own(keras.layers.Dense):
        def save_own_variables(self, store):
            super().save_own_variables(store)

    def make():
        layer = Own(2, name="l")
        layer.build((None, 2))
        layer.enable_lora(1)
        return layer

    model = fresh(make)
    model.layer.lora_kernel_b.assign([[2.0, 3.0]])
    expected = [v.numpy() for v in model.variables]
    directory, path = saved(tmp_path, model)
    other = fresh(make)
    directory.restore(path, parts(other))
    for one, value in zip(other.variables, expected, strict=True):
        np.testing.assert_array_equal(one, value)


def quantized(mode):
    def make():
        layer = keras.layers.Dense(4, name="l")
        layer.build((None, 4))
        layer.quantize(mode)
        return layer

    return make


def spectral():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(4, name="d"), name="l")
    layer.build((None, 4))
    return layer


@pytest.mark.parametrize("make", [quantized("int8"), quantized("int4"), spectral])
def test_layers_whose_state_is_in_variables(tmp_path, make):
    model = fresh(make)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = model(x).numpy()
    directory, path = saved(tmp_path, model)
    other = fresh(make)
    directory.restore(path, parts(other))
    np.testing.assert_array_equal(other(x), expected)


def test_a_feature_space(tmp_path):
    features = {"a": "string_categorical", "b": "float_normalized", "c": "float_discretized"}
    values = {"a": ["x", "y", "y"], "b": [1.0, 2.0, 6.0], "c": [1.0, 5.0, 9.0]}

    def make():
        return keras.utils.FeatureSpace(features, name="l")

    model = fresh(make)
    model.layer.adapt(tf.data.Dataset.from_tensor_slices(values))
    expected = model.layer(values).numpy()
    directory, path = saved(tmp_path, model)
    directory.restore(path, parts(model))
    np.testing.assert_array_equal(model.layer(values), expected)
    other = fresh(make)
    values["a"] = ["y", "x", "x"]
    other.layer.adapt(tf.data.Dataset.from_tensor_slices(values))
    with pytest.raises(CheckpointError, match="a_preprocessor/preprocessing .vocabulary differs"):
        directory.restore(path, parts(other))


def dense_table():
    return tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.float32, [0.0, 0.0], empty_key=-1, deleted_key=-2
    )


def mutable_table(key=tf.string):
    return tf.lookup.experimental.MutableHashTable(key, tf.int64, 0)


class Tables(keras.layers.Layer):
    def __init__(self, key=tf.string):
        super().__init__(name="l")
        self.count, self.more = mutable_table(key), {"x": [dense_table()]}
        self.same = self.count
        self.module = tf.Module()
        self.module.inner = mutable_table(tf.int64)


def test_tables(tmp_path):
    model = fresh(Tables)
    layer = model.layer
    layer.count.insert(["b", "a"], [2, 1])
    layer.more["x"][0].insert([7], [[1.0, 2.0]])
    layer.module.inner.insert([5], [6])
    names = list(named_layer_states(model))
    assert [name.rpartition("l/")[2] for name in names] == ["count", "more/x/0", "module/inner"]
    directory, path = saved(tmp_path, model)
    other = fresh(Tables)
    other.layer.count.insert(["z"], [9])
    directory.restore(path, parts(other))
    assert other.layer.count.lookup(["a", "b", "z"]).numpy().tolist() == [1, 2, 0]
    assert other.layer.count.size() == 2 and other.layer.module.inner.lookup([5]) == 6
    assert other.layer.more["x"][0].lookup([7, 8]).numpy().tolist() == [[1.0, 2.0], [0.0, 0.0]]
    with pytest.raises(CheckpointError, match="l/count .a table of other dtypes"):
        directory.restore(path, parts(fresh(lambda: Tables(tf.int64))))
