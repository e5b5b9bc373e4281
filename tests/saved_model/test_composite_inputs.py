"""Models of ragged and sparse tensors and of graphs are exported, and serve other processes."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fork import run_script
from tests.saved_model.models import Plain
from tfloss import _upstream
from tfloss.errors import ExportError
from tfloss.saved_model.composite_inputs import tensor_specs
from tfloss.saved_model.export import export


class Graph(tf.experimental.ExtensionType):
    """Nodes with features, directed edges (source, target), and the tags of each node."""

    nodes: tf.Tensor
    edges: tf.Tensor
    tags: tf.RaggedTensor


TOKENS = tf.RaggedTensorSpec([None, None], tf.int64)
WORDS = tf.SparseTensorSpec([None, 6])
NODES, EDGES = tf.TensorSpec([None, 4]), tf.TensorSpec([None, 2], tf.int64)
GRAPH = Graph.Spec(nodes=NODES, edges=EDGES, tags=TOKENS)

tokens = tf.ragged.constant([[1, 2], [], [3, 4, 5]], dtype=tf.int64)
words = tf.sparse.from_dense(
    np.float32([[0, 1, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 1]])
)
nodes = tf.constant(np.random.default_rng(0).random((5, 4), np.float32))
edges = tf.constant([[0, 1], [1, 2], [4, 3], [3, 0], [2, 4], [0, 4], [4, 1]], tf.int64)
graph = Graph(nodes, edges, tf.ragged.constant([[1], [], [2, 3], [4], [5, 6]], dtype=tf.int64))


class MeanOfEmbeddings(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = keras.layers.Embedding(9, 4), keras.layers.Dense(2)

    def call(self, batch, training=False):
        rows = tf.ragged.map_flat_values(self.embedding, batch["tokens"])
        return {"logits": self.head(tf.reduce_sum(rows, 1))}


class Wide(keras.Model):
    def __init__(self):
        super().__init__()
        self.table = self.add_weight(shape=(6, 3), initializer="glorot_uniform")

    def call(self, batch, training=False):
        return {"logits": tf.sparse.sparse_dense_matmul(batch["words"], self.table)}


class MessagePassing(keras.Model):
    def __init__(self):
        super().__init__()
        self.message, self.tag = keras.layers.Dense(3), keras.layers.Embedding(9, 3)

    def call(self, batch, training=False):
        graph = batch["graph"] if "graph" in batch else None
        x, links = (graph.nodes, graph.edges) if graph is not None else batch.values()
        hidden = self.message(x)
        if graph is not None:
            hidden += tf.reduce_sum(tf.ragged.map_flat_values(self.tag, graph.tags), 1)
        sent = tf.gather(hidden, links[:, 0])
        return {"states": tf.math.unsorted_segment_sum(sent, links[:, 1], tf.shape(x)[0])}


SPLITS = np.array([0, 1, 1, 3, 4, 6])
MODELS = {
    "ragged": (
        MeanOfEmbeddings,
        {"tokens": TOKENS},
        {"tokens": tokens},
        {"tokens_values": tokens.flat_values, "tokens_row_splits": tokens.row_splits},
    ),
    "sparse": (
        Wide,
        {"words": WORDS},
        {"words": words},
        {
            "words_indices": words.indices,
            "words_values": words.values,
            "words_dense_shape": words.dense_shape,
        },
    ),
    "a graph as two tensors": (
        MessagePassing,
        {"nodes": NODES, "edges": EDGES},
        {"nodes": nodes, "edges": edges},
        {"nodes": nodes, "edges": edges},
    ),
    "a graph as an extension type": (
        MessagePassing,
        {"graph": GRAPH},
        {"graph": graph},
        {
            "graph_nodes": nodes,
            "graph_edges": edges,
            "graph_tags_values": np.arange(1, 7),
            "graph_tags_row_splits": SPLITS,
        },
    ),
}


def test_another_process_predicts_the_same(tmp_path):
    expected = {}
    for name, (make, inputs, example, tensors) in MODELS.items():
        model = make()
        with _upstream.inputs_untouched(model):  # as training calls it, with any batch
            expected[name] = model(example, training=False)
        folder = tmp_path / name
        export(model, folder / "export", inputs, example_inputs={"serving_default": example})
        np.savez(folder / "in.npz", **tensors)

    folders = [str(tmp_path / name) for name in MODELS]
    done = run_script(Path(__file__).parent / "serve.py", *folders)

    assert done.returncode == 0, done.stderr
    for name, outputs in expected.items():
        found = np.load(tmp_path / name / "out.npz")
        assert set(found) == set(outputs)
        for key, value in outputs.items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-5, err_msg=name)


def test_the_batch_may_be_made_of_dense_inputs(tmp_path):
    def ragged(inputs):
        return {"tokens": tf.RaggedTensor.from_row_splits(inputs["values"], inputs["splits"])}

    specs = {"values": tf.TensorSpec([None], tf.int64), "splits": tf.TensorSpec([None], tf.int64)}
    example = {"values": [1, 2, 3, 4, 5], "splits": [0, 2, 5]}  # rows that mean different things
    model = MeanOfEmbeddings()
    model({"tokens": tokens})
    export(
        model,
        tmp_path / "export",
        (specs, ragged),
        example_inputs={"serving_default": example},
    )
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    found = serve(values=tf.constant([1, 2, 3], tf.int64), splits=tf.constant([0, 1, 3], tf.int64))
    batch = {"tokens": tf.ragged.constant([[1], [2, 3]], dtype=tf.int64)}
    np.testing.assert_allclose(found["logits"], model(batch)["logits"], rtol=1e-6)


def test_names_of_the_tensors():
    two = tf.RaggedTensorSpec([None, None, None], tf.int64)
    cases = [
        (TOKENS, ["x_values", "x_row_splits"]),
        (two, ["x_values", "x_row_splits_0", "x_row_splits_1"]),
        (WORDS, ["x_indices", "x_values", "x_dense_shape"]),
        (tf.IndexedSlicesSpec([None, 3]), ["x_0", "x_1"]),
        (GRAPH, ["x_nodes", "x_edges", "x_tags_values", "x_tags_row_splits"]),
        (NODES, ["x"]),
    ]
    for spec, names in cases:
        assert [name for name, _ in tensor_specs("x", spec)] == names
        flat = tf.nest.flatten(spec, expand_composites=True)
        assert [one for _, one in tensor_specs("x", spec)] == flat


def test_a_composite_input_needs_an_example_of_its_type(tmp_path):
    model = Plain(lambda batch: {"y": tf.reduce_sum(batch["x"], 1)})
    with pytest.raises(ExportError, match="'x'.*RaggedTensorSpec.*example_inputs={'serving_defa"):
        export(model, tmp_path / "export", {"x": TOKENS})
    wrong = {"serving_default": {"x": np.ones([2, 2], np.int64)}}
    with pytest.raises(ExportError, match="'x' is ndarray, but the input is RaggedTensorSpec"):
        export(model, tmp_path / "export", {"x": TOKENS}, example_inputs=wrong)
    export(model, tmp_path / "export", {"x": TOKENS}, verify=False)
