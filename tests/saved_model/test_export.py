"""Exports: what they hold, what they refuse, and who can read them."""

import collections
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.errors import ExportError
from tfloss.saved_model import export

ROOT = Path(__file__).parents[2]
IMAGE = {"image": tf.TensorSpec([None, 8, 8, 1])}


class Net(keras.Model):
    """A small conv net with layers in a list, a dict and an attribute, and a training branch."""

    def __init__(self, forward=None):
        super().__init__()
        self.blocks = [keras.layers.Conv2D(4, 3), {"norm": keras.layers.BatchNormalization()}]
        self.drop = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(10)
        self.forward = forward

    def call(self, batch, training=False):
        x = self.blocks[0](batch["image"])
        x = self.blocks[1]["norm"](x, training=training)
        x = tf.reduce_mean(self.drop(tf.nn.relu(x), training=training), [1, 2])
        logits = self.head(x)
        if training:
            tfloss.summary.scalar("logit", tf.reduce_mean(logits))
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            return {"cross_entropy": tf.reduce_mean(each)}
        if self.forward is not None:
            return self.forward(batch, logits)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


def images(count=5, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 1), np.float32)


def built(model=None):
    """A model that has trained a little, so that its statistics are not those it began with."""
    model = model or Net()
    batch = {"image": images(8), "label": np.arange(8)}

    @tf.function(autograph=False)
    def train():
        return model(batch, training=True)

    train()
    return model


def serve(path, signature="serving_default", /, **inputs):
    function = tf.saved_model.load(str(path)).signatures[signature]
    return {
        k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()
    }


def graph_of(path, name="serving_default"):
    return tf.saved_model.load(str(path)).signatures[name].graph.as_graph_def()


def test_signature_has_the_given_names_no_label_and_a_dynamic_batch(tmp_path):
    model = built()
    path = export(model, tmp_path / "export", IMAGE)
    function = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert function.structured_input_signature == (
        (),
        {"image": tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")},
    )
    assert {k: v.shape.as_list() for k, v in function.structured_outputs.items()} == {
        "logits": [None, 10],
        "probabilities": [None, 10],
    }
    for count in (1, 2, 7):
        x = images(count)
        expected = model({"image": x}, training=False)
        np.testing.assert_allclose(
            serve(path, image=x)["probabilities"], expected["probabilities"], rtol=0, atol=1e-6
        )


def test_a_model_that_was_never_called_can_be_exported(tmp_path):
    model = Net()
    path = export(model, tmp_path / "export", IMAGE)
    expected = model({"image": images()}, training=False)["logits"]
    np.testing.assert_allclose(serve(path, image=images())["logits"], expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_are_float32_under_mixed_precision(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = built()
    finally:
        keras.config.set_dtype_policy("float32")
    x = images()
    expected = model({"image": x}, training=False)["probabilities"]
    assert expected.dtype in (tf.bfloat16, tf.float16)
    got = serve(export(model, tmp_path / "export", IMAGE), image=x)["probabilities"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, tf.cast(expected, tf.float32), atol=1e-2)


def test_inputs_reach_the_model_as_they_are_under_mixed_precision(tmp_path):
    class Scale(keras.Model):
        def call(self, batch, training=False):
            return batch["x"] * 2

    model = Scale(dtype="mixed_float16")
    path = export(model, tmp_path / "export", {"x": tf.TensorSpec([None])})
    assert serve(path, x=np.float32([70_000]))["output"].tolist() == [140_000]  # inf in float16


Pair = collections.namedtuple("Pair", ["boxes", "scores"])


@pytest.mark.parametrize(
    ("predictions", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, 2 * x), ["output_0", "output_1"]),
        (lambda x: [x], ["output_0"]),
        (lambda x: Pair(x, x), ["boxes", "scores"]),
        (lambda x: {"rpn": {"boxes": x, "masks": [x, x]}, "none": None},
         ["rpn/boxes", "rpn/masks_0", "rpn/masks_1"]),
    ],
)  # fmt: skip
def test_names_of_outputs(tmp_path, predictions, names):
    model = Net(lambda batch, logits: predictions(logits))
    path = export(model, tmp_path / "export", IMAGE)
    assert sorted(serve(path, image=images())) == names


def test_outputs_by_name_and_by_function(tmp_path):
    model = built()
    path = export(model, tmp_path / "a", IMAGE, outputs=["probabilities"])
    assert list(serve(path, image=images())) == ["probabilities"]
    path = export(
        model, tmp_path / "b", IMAGE, outputs=lambda p: {"class": tf.argmax(p["logits"], -1)}
    )
    expected = np.argmax(model({"image": images()})["logits"], -1)
    np.testing.assert_array_equal(serve(path, image=images())["class"], expected)
    with pytest.raises(ExportError, match="no output 'boxes'. Its outputs are logits, prob"):
        export(model, tmp_path / "c", IMAGE, outputs=["boxes"])


def test_an_output_named_like_an_input_is_refused(tmp_path):
    model = Net(lambda batch, logits: {"image": batch["image"], "logits": logits})
    with pytest.raises(ExportError, match="Output 'image' has the name of an input.*outputs=lam"):
        export(model, tmp_path / "export", IMAGE)
    export(model, tmp_path / "export", IMAGE, outputs=["logits"])


def test_other_outputs_that_signatures_cannot_have(tmp_path):
    for predictions, message in [
        (lambda x: {"a": tf.RaggedTensor.from_tensor(x)}, "Output 'a' is a RaggedTensor"),
        (lambda x: {"a": {"b": x}, "a/b": x}, "Two outputs are named 'a/b'"),
        (lambda x: {}, "returned nothing"),
    ]:
        model = Net(lambda batch, logits, make=predictions: make(logits))
        with pytest.raises(ExportError, match=message):
            export(model, tmp_path / "export", IMAGE)


class Plain(keras.Model):
    """Any function of the batch."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, batch, training=False):
        return self.function(batch)


def test_models_of_a_tensor_or_a_tuple(tmp_path):
    one = tf.TensorSpec([None], tf.float32)
    path = export(Plain(lambda x: 2 * x), tmp_path / "a", one)
    assert serve(path, input=np.float32([3]))["output"].tolist() == [6]
    named = tf.TensorSpec([None], tf.float32, name="right")
    path = export(Plain(lambda pair: pair[0] - pair[1]), tmp_path / "b", (one, named))
    got = serve(path, input_0=np.float32([3]), right=np.float32([1]))
    assert got["output"].tolist() == [2]


def test_functional_models(tmp_path):
    x = keras.Input([3], name="x")
    model = keras.Model({"x": x}, {"y": keras.layers.Dense(2)(x)})
    path = export(model, tmp_path / "export", {"x": tf.TensorSpec([None, 3])})
    value = np.ones([2, 3], np.float32)
    np.testing.assert_allclose(serve(path, x=value)["y"], model({"x": value})["y"], atol=1e-6)


def test_two_signatures_one_of_png_bytes(tmp_path):
    def decode(batch):
        one = lambda png: tf.cast(tf.io.decode_png(png, 1), tf.float32) / 255  # noqa: E731
        pictures = tf.map_fn(one, batch["png"], fn_output_signature=tf.float32)
        return {"image": tf.ensure_shape(pictures, [None, 8, 8, 1])}

    model = built()
    pixels = np.random.default_rng(1).integers(256, size=(2, 8, 8, 1), dtype=np.uint8)
    encoded = np.array([tf.io.encode_png(one).numpy() for one in pixels])
    png = ({"png": tf.TensorSpec([None], tf.string)}, decode)
    with pytest.raises(ExportError, match="made up.*'png'.*example_inputs={'png': ...}"):
        export(model, tmp_path / "export", IMAGE, signatures={"png": png})
    assert not list(tmp_path.iterdir())
    path = export(
        model,
        tmp_path / "export",
        IMAGE,
        signatures={"png": png},
        example_inputs={"png": {"png": encoded}},
    )
    x = pixels.astype(np.float32) / 255
    expected = model({"image": x}, training=False)["probabilities"]
    for got in (serve(path, image=x), serve(path, "png", png=encoded)):
        np.testing.assert_allclose(got["probabilities"], expected, atol=1e-6)


def test_a_ragged_batch_from_two_dense_inputs(tmp_path):
    model = Plain(lambda batch: {"sum": tf.reduce_sum(batch["x"], -1)})
    specs = {"values": tf.TensorSpec([None]), "lengths": tf.TensorSpec([None], tf.int64)}
    pair = (specs, lambda b: {"x": tf.RaggedTensor.from_row_lengths(b["values"], b["lengths"])})
    values, lengths = np.float32([1, 2, 4]), np.array([1, 1, 1])
    path = export(
        model,
        tmp_path / "export",
        pair,
        example_inputs={"serving_default": {"values": values, "lengths": lengths}},
    )
    assert serve(path, values=values, lengths=np.array([1, 2]))["sum"].tolist() == [1, 6]


@pytest.mark.parametrize("where", ["list", "layer", "closure", "file"])
def test_lookup_tables_go_along(tmp_path, where):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("cat\ndog\n")
    initializer = tf.lookup.KeyValueTensorInitializer(["cat", "dog"], [1, 2])
    table = tf.lookup.StaticHashTable(initializer, 0)

    class Words(keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = [table] if where == "list" else []
            self.lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"])
            if where == "file":
                lines = tf.lookup.TextFileInitializer(
                    str(vocabulary),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                )
                self.from_file = tf.lookup.StaticVocabularyTable(lines, num_oov_buckets=1)

        def build(self, shape):
            pass

        def call(self, batch, training=False):
            words = batch["word"]
            if where == "layer":
                return {"number": self.lookup(words)}
            if where == "file":
                return {"number": self.from_file.lookup(words) + 1}
            return {"number": (self.tables[0] if where == "list" else table).lookup(words)}

    path = export(Words(), tmp_path / "export", {"word": tf.TensorSpec([None], tf.string)})
    vocabulary.unlink()
    assert serve(path, word=np.array(["dog", "cat"]))["number"].tolist() == [2, 1]


def test_what_is_saved_is_what_the_graph_needs(tmp_path):
    class Big(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.layers.Dense(1000, name="used")
            self.unused = keras.layers.Dense(1000, name="unused")

        def call(self, batch, training=False):
            y = self.net(batch["x"])
            return tf.reduce_mean(y + self.unused(batch["x"])) if training else {"y": y}

    model = Big()
    x = {"x": np.ones([2, 1000], np.float32)}
    with tf.GradientTape() as tape:
        loss = model(x, training=True)
    optimizer = keras.optimizers.Adam()
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    path = export(model, tmp_path / "export", {"x": tf.TensorSpec([None, 1000])})
    saved = tf.train.list_variables(str(path / "variables" / "variables"))
    assert sorted(shape for name, shape in saved if "VARIABLE_VALUE" in name) == [
        [1000],
        [1000, 1000],
    ]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert 4 * 1001 * 1000 < size < 1.02 * 4 * 1001 * 1000


def test_replicas_are_averaged_and_left_as_they_were(tmp_path, replicas):
    strategy = replicas(2)
    with strategy.scope():
        model = Net()
        model({"image": images()})

    @tf.function(autograph=False)
    def train():
        def replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            batch = {"image": images(4) + tf.cast(index, tf.float32), "label": np.arange(4)}
            return model(batch, training=True)

        return strategy.run(replica)

    train()
    norm = model.blocks[1]["norm"]
    before = [copy.numpy() for copy in norm.moving_mean.value.values]
    assert not np.allclose(*before)
    path = export(model, tmp_path / "outside", IMAGE)
    after = [copy.numpy() for copy in norm.moving_mean.value.values]
    np.testing.assert_array_equal(before, after)
    with strategy.scope():
        inside = export(model, tmp_path / "inside", IMAGE)

    single = Net()
    single({"image": images()})
    for mine, theirs in zip(single.variables, model.variables, strict=True):
        copies = [copy.numpy() for copy in theirs.value.values]
        mine.assign(np.mean(copies, 0) if theirs.dtype == "float32" else copies[0])
    expected = single({"image": images()}, training=False)["logits"]
    assert np.abs(expected - model({"image": images()}, training=False)["logits"]).max() > 1e-5
    for one in (path, inside):
        np.testing.assert_allclose(serve(one, image=images())["logits"], expected, atol=1e-6)
        graph = graph_of(one)
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        assert {node.device for node in nodes} == {""}


@tf.function
def _noisy(x):
    return x + tf.random.normal(tf.shape(x))


class Trains(keras.Model):
    """Forgets to tell its layers that it does not train."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, batch, training=False):
        return self.layer(batch["x"], training=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b: b["x"] + tf.random.uniform([]), "RandomUniform.*draws random"),
        (lambda b: tf.cond(b["x"][0, 0] > 0, lambda: _noisy(b["x"]), lambda: b["x"]),
         "RandomStandardNormal.*draws random"),
        (lambda b: tf.map_fn(lambda x: x + tf.random.uniform([]), b["x"]), "RandomUniform"),
        (lambda b: b["x"] + tf.random.get_global_generator().uniform([]), "Rng.*draws random"),
        (lambda b: tf.numpy_function(np.sin, [b["x"]], tf.float32), "PyFunc.*calls Python"),
        (lambda b: (tf.raw_ops.ScalarSummary(tags="a", values=1.0), b["x"]), "writes a summary"),
        (lambda b: tf.raw_ops.CollectiveReduceV2(
            input=b["x"], group_size=1, group_key=1, instance_key=1, ordering_token=[],
            merge_op="Add", final_op="Id"), "CollectiveReduceV2.*waits for other replicas"),
    ],
)  # fmt: skip
def test_ops_of_training_are_refused_with_their_line(tmp_path, function, message):
    with pytest.raises(ExportError, match=message) as caught:
        export(Plain(function), tmp_path / "export", {"x": tf.TensorSpec([None, 2])})
    made_in = _noisy.python_function if "RandomStandardNormal" in message else function
    lines, first = inspect.getsourcelines(made_in)
    assert any(f"{__file__}:{first + i} " in str(caught.value) for i in range(len(lines)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
def test_layers_left_in_training_are_refused(tmp_path, layer):
    with pytest.raises(ExportError, match=r"changes a variable.*in call.*|in call.*changes a var"):
        export(Trains(layer), tmp_path / "export", {"x": tf.TensorSpec([None, 2])})


def test_plain_summaries_do_nothing(tmp_path):
    def forward(batch):
        tf.summary.scalar("mean", tf.reduce_mean(batch["x"]), step=0)
        tfloss.summary.scalar("mean", tf.reduce_mean(batch["x"]))
        return batch["x"] + 1

    with tf.summary.create_file_writer(str(tmp_path / "events")).as_default():
        path = export(Plain(forward), tmp_path / "export", {"x": tf.TensorSpec([None])})
    assert "Summary" not in str(graph_of(path))


def test_a_missing_label_is_named_with_the_line(tmp_path):
    model = built(Net(lambda batch, logits: {"right": tf.argmax(logits, -1) == batch["label"]}))
    message = r"asked for key 'label', which is not among the inputs.*\(image\).*test_export.py:\d+"
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "export", IMAGE)
    own = Plain(lambda batch: {"x": {}["x"]})
    with pytest.raises(KeyError):  # not the batch's fault
        export(own, tmp_path / "export", {"x": tf.TensorSpec([None])})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": (None, 8, 8, 1)}, "Input 'image' .* must be a tf.TensorSpec.* got tuple"),
        ({"image": {"x": tf.TensorSpec([None])}}, "must be a tf.TensorSpec.*got dict.*nested"),
        ({"image/x": tf.TensorSpec([None])}, "Input name 'image/x' .* can't be kept"),
        ({"self": tf.TensorSpec([None])}, "Input name 'self' .* can't be kept"),
        ({"lambda": tf.TensorSpec([None])}, "Input name 'lambda' .* can't be kept"),
        ((tf.TensorSpec([], name="a"), tf.TensorSpec([], name="a")), "have the same name"),
        ({}, "are empty"),
    ],
)
def test_inputs_that_are_no_signature(tmp_path, inputs, message):
    with pytest.raises(ExportError, match=message):
        export(Plain(lambda batch: batch), tmp_path / "export", inputs)


def test_other_arguments_that_make_no_sense(tmp_path):
    model, path = Plain(lambda batch: 2 * batch["x"]), tmp_path / "export"
    inputs = {"x": tf.TensorSpec([None])}
    for message, options in {
        "Two signatures are named 'serving_default'": {"signatures": {"serving_default": inputs}},
        "an entry 'x', but its keys are names of signatures: 'serv": {"example_inputs": {"x": 1}},
        "has y, but the inputs are x": {"example_inputs": {"serving_default": {"y": [1.0]}}},
        r"'x' has shape \(1, 1\), but": {"example_inputs": {"serving_default": {"x": [[1.0]]}}},
    }.items():
        with pytest.raises(ExportError, match=message):
            export(model, path, inputs, **options)
    with pytest.raises(ExportError, match="must be a keras.Model, got function"):
        export(lambda batch: batch, path, inputs)
    with pytest.raises(ExportError, match="not a local directory"):
        export(model, "gs://bucket/export", inputs)


def test_input_names_that_collide_with_arguments_of_tensorflow(tmp_path):
    names = ["args", "name", "tensors", "training", "signature", "Image", "inputs", "x_1"]
    model = Plain(lambda batch: {"sum": tf.add_n([batch[name] for name in names])})
    path = export(model, tmp_path / "export", {name: tf.TensorSpec([None]) for name in names})
    got = serve(path, **{name: np.float32([2**i]) for i, name in enumerate(names)})
    assert got["sum"].tolist() == [255]


def test_an_export_that_disagrees_is_not_written(tmp_path):
    class Counts(keras.Model):
        calls = 0

        def call(self, batch, training=False):
            self.calls += 1  # frozen in the graph, but not in the model
            return {"y": batch["x"] * 0 + self.calls, "x2": 2 * batch["x"]}

    path = tmp_path / "export"
    with pytest.raises(ExportError, match="output 'y' of signature 'serving_default' differs by"):
        export(Counts(), path, {"x": tf.TensorSpec([None])})
    assert not list(tmp_path.iterdir())
    export(Counts(), path, {"x": tf.TensorSpec([None])}, verify=False)
    assert path.is_dir()


def test_differences_are_measured_against_the_output():
    from tfloss.saved_model.checks import _difference

    big, nan = np.float32([100, 1]), np.float32([np.nan, 1])
    assert _difference(big, big + np.float32(0.005), 1e-4) is None
    assert _difference(big, big + np.float32(0.5), 1e-4) == "differs by up to 0.5 (allowed: 0.01)"
    assert _difference(nan, nan, 1e-4) is None
    assert "nan" in (_difference(big, nan, 1e-4) or "")
    assert "[1] instead of float32[2]" in (_difference(big, big[:1], 1e-4) or "")
    assert _difference(np.array([1, 2]), np.array([1, 3]), 1e9) == "differs in 1 of 2 values"
    infinite = np.float32([np.inf, 1])
    assert _difference(infinite, infinite + np.float32(1e-6), 1e-4) is None


def test_only_an_earlier_export_is_replaced(tmp_path):
    model, x = Plain(lambda batch: batch["x"] + 1), {"x": tf.TensorSpec([None])}
    path = tmp_path / "some" / "export"
    export(model, path, x)
    first = path.stat().st_ino
    with pytest.raises(ExportError, match="overwrite is False"):
        export(model, path, x, overwrite=False)
    with pytest.raises(ExportError, match="draws random numbers"):
        export(Plain(lambda b: b["x"] + tf.random.normal([])), path, x)
    assert path.stat().st_ino == first
    export(Plain(lambda batch: batch["x"] + 5), path, x)
    assert serve(path, x=np.float32([0]))["output"].tolist() == [5]
    assert [one.name for one in path.parent.iterdir()] == ["export"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    with pytest.raises(ExportError, match="is no earlier export"):
        export(model, mine, x)
    assert (mine / "thesis.txt").exists()


def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    path, x = tmp_path / "export", {"x": tf.TensorSpec([None])}
    export(Plain(lambda batch: batch["x"] + 1), path, x)
    assert path.stat().st_mode & 0o055  # readable by others, who serve it

    def half_saved(module, directory, **options):
        tf.io.gfile.makedirs(directory)
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(tf.saved_model, "save", half_saved)
        export(Plain(lambda batch: batch["x"] + 2), path, x)
    replace = os.replace

    def no_replace(source, target):
        if source.name == "export" and target == path:
            raise OSError("disk gone")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk gone"):
        patch.setattr(os, "replace", no_replace)
        export(Plain(lambda batch: batch["x"] + 2), path, x)
    assert [one.name for one in tmp_path.iterdir()] == ["export"]
    assert serve(path, x=np.float32([0]))["output"].tolist() == [1]


def test_a_process_without_tfloss_and_keras_reads_it(tmp_path):
    """There, to import either fails. (TensorFlow imports Keras by itself where it is installed.)"""
    model = built()
    path = export(model, tmp_path / "export", IMAGE)
    np.save(tmp_path / "x.npy", images())
    script = f"""
        import sys
        sys.modules["keras"] = sys.modules["tfloss"] = None
        import numpy, tensorflow as tf
        serve = tf.saved_model.load({str(path)!r}).signatures["serving_default"]
        y = serve(image=tf.constant(numpy.load({str(tmp_path / "x.npy")!r})))
        numpy.save({str(tmp_path / "y.npy")!r}, y["probabilities"].numpy())
        names = {{name.split(".")[0] for name, one in sys.modules.items() if one is not None}}
        assert not names & {{"keras", "tf_keras", "tfloss"}}, names
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=tmp_path)
    expected = model({"image": images()}, training=False)["probabilities"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-6)


def test_onnxruntime_reads_it(tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = built()
    flat = ({"pixels": tf.TensorSpec([None, 64])}, lambda b: {"image": to_images(b["pixels"])})
    to_images = lambda pixels: tf.reshape(pixels, [-1, 8, 8, 1])  # noqa: E731
    path = export(model, tmp_path / "export", IMAGE, signatures={"flat": flat})
    onnx = str(tmp_path / "model.onnx")
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(path)]
    command += ["--signature_def", "flat", "--output", onnx, "--opset", "18"]
    subprocess.run(command, check=True, capture_output=True)
    session = runtime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["pixels"]
    assert {one.name for one in session.get_outputs()} == {"logits", "probabilities"}
    for count in (1, 6):
        x = images(count)
        (got,) = session.run(["probabilities"], {"pixels": x.reshape([count, 64])})
        expected = model({"image": x}, training=False)["probabilities"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_code_in_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "export.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {"tf": tf, "tfloss": tfloss, "model": built()}
    for block in blocks:
        exec(block, names)
    assert names["probabilities"].shape == [5, 10]
    assert len(blocks) == 4
