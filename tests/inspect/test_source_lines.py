"""The innermost line of the user's code is found; lines of libraries are skipped."""

import contextlib
import sys
import types

import keras
import pytest
import tensorflow as tf

import tfloss
from tfloss.inspect.source_lines import caller_line, error_line, is_library, op_line, shown_path


def test_caller_line_is_the_line_that_calls_it():
    line = caller_line()
    first = test_caller_line_is_the_line_that_calls_it.__code__.co_firstlineno
    assert line == f"{__file__}:{first + 1} (in {sys._getframe().f_code.co_name})"


def test_caller_line_skips_frames_of_keras():
    class Layer(keras.layers.Layer):
        def call(self, x):
            return x

        def compute_output_shape(self, shape):
            self.line = caller_line()
            return shape

    layer = Layer()
    layer.compute_output_spec(keras.KerasTensor([1]))
    assert f"{__file__}:" in layer.line and "(in compute_output_shape)" in layer.line


def test_error_line_is_the_innermost_line_outside_of_libraries():
    def wrong():
        return tf.reshape(tf.zeros([3]), [2])

    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        wrong()
    assert error_line(e.value) == f"{__file__}:{wrong.__code__.co_firstlineno + 1} (in wrong)"
    assert error_line(KeyError()) == "unknown line"


@pytest.mark.parametrize("autograph", [False, True])
def test_op_line_is_the_line_that_made_the_op(autograph):
    def call(x):
        if x > 0:
            x = tf.sin(x)
        return x

    call = call if autograph else (lambda x: tf.sin(x))
    graph = tf.function(call, autograph=autograph).get_concrete_function(
        1.0 if not autograph else 2.0
    )
    ops = [op for op in graph.graph.get_operations() if op.type == "Sin"]
    for op in ops:
        assert op_line(op).startswith(f"{__file__}:")
    assert ops


@pytest.mark.parametrize("module", [tf, keras, contextlib, tfloss])
def test_files_of_libraries_are_not_the_users(module):
    assert is_library(module.__file__)


def test_other_files_are_the_users():
    assert not is_library(__file__)
    assert not is_library(str(tfloss.__file__).replace("tfloss/__init__", "tfloss_models/net"))


def test_a_cell_of_a_notebook_is_named_by_its_number(monkeypatch):
    names = {"/tmp/ipykernel_1/2.py": ("Cell", "In[3]")}
    shell = types.SimpleNamespace(
        kernel=object(), compile=types.SimpleNamespace(format_code_name=names.get)
    )
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert shown_path("/tmp/ipykernel_1/2.py") == "Cell In[3]"
    assert shown_path("/home/me/model.py") == "/home/me/model.py"
