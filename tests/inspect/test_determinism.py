"""Op determinism: what it needs, what it gives, and the advice for ops without such a kernel."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tfloss.inspect.determinism import add_determinism_advice, enable_op_determinism

ROOT = Path(__file__).parents[2]


def test_determinism_needs_a_seed():
    with pytest.raises(ValueError, match="needs a seed. Pass one, such as seed=0"):
        enable_op_determinism(None)


DETERMINISTIC = """
import keras, tensorflow as tf
from tfloss.data.nondeterminism import nondeterministic_inputs
from tfloss.inspect.determinism import enable_op_determinism

keras.utils.set_random_seed(0)
enable_op_determinism(0)
numbers = tf.data.Dataset.range(50)
data = numbers.map(lambda x: tf.random.uniform([]), num_parallel_calls=4, deterministic=False)
assert nondeterministic_inputs(data) and not nondeterministic_inputs(data, op_determinism=True)
print([float(x) for x in data.shuffle(9)])
"""


@pytest.mark.slow
def test_a_deterministic_pipeline_gives_the_same_elements_in_every_process():
    command = [sys.executable, "-c", DETERMINISTIC]
    one, other = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in "12")
    assert one.returncode == 0, one.stderr
    assert one.stdout == other.stdout != ""


def test_an_op_without_a_deterministic_kernel_gets_advice():
    text = "Deterministic GPU implementation of unsorted segment reduction op not available."
    error = tf.errors.UnimplementedError(None, None, text)
    add_determinism_advice(error)
    assert "train without deterministic=True" in error.__notes__[0]
    other = tf.errors.UnimplementedError(None, None, "no such kernel")
    add_determinism_advice(other)
    assert not hasattr(other, "__notes__")
