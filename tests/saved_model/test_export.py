"""Exports: what they contain, what they refuse, and who can read them."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.fork import run_script
from tests.saved_model.models import IMAGE, Net, Plain, built, graph_of, images, serve
from tfloss.common import replacement
from tfloss.errors import ExportError
from tfloss.saved_model.export import export

ROOT = Path(__file__).parents[2]


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
    with pytest.warns(UserWarning, match=r"have their initial values: .*kernel.*Train the model"):
        path = export(model, tmp_path / "export", IMAGE)
    with warnings.catch_warnings():  # now they are there
        warnings.simplefilter("error")
        export(model, tmp_path / "export", IMAGE)
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


@pytest.mark.promise(53)
def test_a_nested_function_has_the_current_weights(tmp_path):
    """A functional model is built symbolically, which traces the function with initial weights."""

    class Features(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1, use_bias=False)

        @tf.function
        def call(self, x):
            return self.dense(x)

    x = keras.Input([1], name="x")
    model = keras.Model(x, {"y": Features()(x)})
    model.set_weights([np.float32([[3.0]])])
    path = export(model, tmp_path / "export", {"x": tf.TensorSpec([None, 1])})
    assert serve(path, x=np.float32([[2.0]]))["y"].tolist() == [[6.0]]


def test_two_signatures_one_of_png_bytes(tmp_path):
    def decode(batch):
        one = lambda png: tf.cast(tf.io.decode_png(png, 1), tf.float32) / 255  # noqa: E731
        pictures = tf.map_fn(one, batch["png"], fn_output_signature=tf.float32)
        return {"image": tf.ensure_shape(pictures, [None, 8, 8, 1])}

    model = built()
    pixels = np.random.default_rng(1).integers(256, size=(2, 8, 8, 1), dtype=np.uint8)
    encoded = np.array([tf.io.encode_png(one).numpy() for one in pixels])
    png = ({"png": tf.TensorSpec([None], tf.string)}, decode)
    with pytest.raises(ExportError, match="generated.*'png'.*example_inputs={'png': ...}"):
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
    with pytest.raises(ExportError, match=r"it has no assets.extra/tfloss.json"):
        export(model, mine, x)
    assert (mine / "thesis.txt").exists()


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_control_c_during_the_swap_leaves_a_whole_export(tmp_path, monkeypatch, way):
    """Before the first rename, between the two, and after the last one."""
    path, x = tmp_path / "export", {"x": tf.TensorSpec([None])}
    export(Plain(lambda batch: batch["x"] + 1), path, x)
    real, rename = replacement.exchange, os.replace
    for moment in ("before", "after"):

        def exchange(one, other, moment=moment):
            if way == "two renames":
                return False
            if moment == "before":
                raise KeyboardInterrupt
            assert real(one, other)
            raise KeyboardInterrupt

        def replace(source, target, moment=moment):
            if way == "exchange" or target != path or "earlier" in source.name:
                return rename(source, target)
            if moment == "after":
                rename(source, target)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(replacement, "exchange", exchange)
            patch.setattr(os, "replace", replace)
            export(Plain(lambda batch: batch["x"] + 2), path, x)
        assert [one.name for one in tmp_path.iterdir()] == ["export"]
        expected = 1 if moment == "before" else 2
        assert serve(path, x=np.float32([0]))["output"].tolist() == [expected]


KILLED = """
import os, signal, sys
import keras, tensorflow as tf
import tfloss
from tfloss.common import replacement

def die(*paths):
    os.kill(os.getpid(), signal.SIGKILL)

real, rename = replacement.exchange, os.replace
path, way = sys.argv[1:]
if way == "before":
    replacement.exchange = die
elif way == "after":
    replacement.exchange = lambda one, other: real(one, other) and die()
else:  # between the two renames
    replacement.exchange = lambda one, other: False
    os.replace = lambda one, other: die() if str(other) == path else rename(one, other)
model = keras.Sequential([keras.Input([1]), keras.layers.Rescaling(2.0)])
tfloss.export(model, path, tf.TensorSpec([None, 1], name="x"))
"""


@pytest.mark.parametrize("way", ["before", "after", "between"])
def test_a_kill_during_the_swap_leaves_a_whole_export(tmp_path, way):
    path, spec = tmp_path / "export", tf.TensorSpec([None, 1], name="x")
    model = keras.Sequential([keras.Input([1]), keras.layers.Rescaling(1.0)])
    export(model, path, spec)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    assert run_script(script, str(path), way).returncode == -signal.SIGKILL
    script.unlink()
    if way == "between":  # only on file systems that can't exchange directories
        assert not path.exists()
        replacement.remove_leftovers(tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == ["export"]
    factor = {"before": 1, "after": 2, "between": 1}[way]
    assert serve(path, x=np.float32([[3]]))["output"].tolist() == [[3 * factor]]
    export(model, path, spec)
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


def test_only_what_tfloss_wrote_is_replaced(tmp_path):
    model, x = Plain(lambda batch: batch["x"] + 1), {"x": tf.TensorSpec([None])}
    path = export(model, tmp_path / "export", x)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"'notes.txt' was added. Move it away"):
        export(model, path, x)
    (path / "notes.txt").unlink()
    fingerprint = (path / "fingerprint.pb").read_bytes()
    (path / "fingerprint.pb").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"'fingerprint.pb' was changed"):
        export(model, path, x)
    (path / "fingerprint.pb").write_bytes(fingerprint)
    export(model, path, x)
    other = tmp_path / "other"
    tf.saved_model.save(tf.Module(), str(other))
    with pytest.raises(ExportError, match=r"it has no assets.extra/tfloss.json"):
        export(model, other, x)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["export", "other"]


def test_what_appears_at_the_path_during_the_export_is_not_replaced(tmp_path, monkeypatch):
    path, save = tmp_path / "export", tf.saved_model.save

    def slow(*arguments, **options):
        save(*arguments, **options)
        path.mkdir()
        (path / "thesis.txt").write_text("mine")

    monkeypatch.setattr(tf.saved_model, "save", slow)
    with pytest.raises(ExportError, match="so it is not replaced"):
        export(Plain(lambda batch: batch["x"] + 1), path, {"x": tf.TensorSpec([None])})
    assert [one.name for one in path.iterdir()] == ["thesis.txt"]


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

    def no_exchange(one, other):
        raise OSError("disk gone")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk gone"):
        patch.setattr(replacement, "exchange", no_exchange)
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
    text_model = Plain(lambda batch: {"sum": tf.reduce_sum(batch["tokens"], 1)})
    names = {"tf": tf, "tfloss": tfloss, "model": built(), "text_model": text_model}
    for block in blocks:
        exec(block, names)
    assert names["probabilities"].shape == [5, 10]
    assert len(blocks) == 5
