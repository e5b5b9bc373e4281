"""Keras layers still keep their state as `tfloss._upstream.keras_states` expects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_keras_does_not_track_the_states_of_an_rnn():
    cells = [keras.layers.LSTMCell(2), keras.layers.GRUCell(3)]
    layer = keras.layers.RNN(cells, stateful=True)
    layer.build((4, 5, 6))
    states = _upstream.rnn_states(layer)
    assert [tuple(state.shape) for state in states] == [(4, 2), (4, 2), (4, 3)]
    assert not {id(state) for state in states} & {id(v) for v in layer.variables}


def test_a_normalization_built_in_a_graph_keeps_tensors_of_that_graph():
    def build():
        layer = keras.layers.Normalization()
        tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec([None, 1]))
        return layer

    with pytest.raises(NotImplementedError, match="symbolic"):
        np.asarray(build().mean)
    with _upstream.built_eagerly():
        layer = build()
    _upstream.finalize_states(layer)
    assert np.asarray(layer.mean) == 0.0


def test_the_constants_of_a_normalization_follow_its_variables_when_told():
    layer = keras.layers.Normalization()
    layer.build((None, 1))
    before = _upstream.derived_state(layer)
    layer.adapt_mean.assign([2.0])
    assert _upstream.derived_state(layer) == before and layer(tf.ones([1, 1])) == 1.0
    _upstream.finalize_states(layer)
    assert _upstream.derived_state(layer) != before and layer(tf.ones([1, 1])) == -1.0


def test_a_lookup_layer_takes_a_vocabulary_after_it_was_traced():
    layer = keras.layers.TextVectorization(output_mode="tf_idf")
    lookup = _upstream.lookup_in(layer)
    before = _upstream.derived_state(layer)
    _upstream.set_vocabulary(lookup, ["[UNK]", "a"], [0.5, 2.0])
    assert _upstream.derived_state(layer) != before
    assert _upstream.idf_weights(lookup) == [0.5, 2.0]
    assert layer(tf.constant(["a a"])).numpy().tolist() == [[0.0, 4.0]]
    assert _upstream.lookup_in(keras.layers.Dense(1)) is None


def test_which_methods_are_the_users():
    class Own(keras.layers.Dense):
        def save_assets(self, path):
            pass

    layer = Own(1)
    assert _upstream.overridden(layer, "save_assets") == layer.save_assets
    assert _upstream.overridden(layer, "save_own_variables") is None  # Keras's
    assert _upstream.overridden(layer, "load_assets") is None  # nobody's


def test_the_table_in_a_vocabulary_table():
    keys = tf.lookup.KeyValueTensorInitializer(["a"], tf.constant([0], tf.int64))
    table = tf.lookup.StaticVocabularyTable(keys, 2)
    assert not hasattr(table, "export")
    assert _upstream.static_table_in(table).export()[0].numpy().tolist() == [b"a"]
    assert _upstream.static_table_in(tf.lookup.StaticVocabularyTable(None, 2)) is None
    table = tf.lookup.StaticHashTable(keys, 0)
    assert _upstream.static_table_in(table) is table
