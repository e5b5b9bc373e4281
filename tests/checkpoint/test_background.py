"""Writes in the background: what is written is what was there when `save` returned."""

import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory, CheckpointFiles
from tfloss.errors import CheckpointError, CheckpointWriteError


class Held(CheckpointDirectory):
    """Its writes wait until the test lets them go."""

    def __init__(self, path):
        super().__init__(path)
        self.go = threading.Event()

    def write(self, step, fill, manifest):
        assert self.go.wait(20)
        return super().write(step, fill, manifest)


def restored(directory, step, like):
    variables = {name: tf.Variable(tf.zeros_like(v)) for name, v in like.items()}
    directory.restore(directory.at(step), variables)
    return {name: variable.numpy() for name, variable in variables.items()}


def _by_hand(variable):
    variable.assign(variable * 0 + 7)


def _in_a_graph(variable):
    tf.function(lambda: variable.assign_add(tf.ones_like(variable)))()


def _in_xla(variable):
    tf.function(lambda: variable.assign_add(tf.ones_like(variable)), jit_compile=True)()


def _sparsely(variable):
    variable.scatter_sub(tf.IndexedSlices(tf.ones([1, 1000]), [0]))


@pytest.mark.parametrize("update", [_by_hand, _in_a_graph, _in_xla, _sparsely])
def test_changes_after_the_save_are_not_written(update, tmp_path):
    directory, writer = Held(tmp_path), BackgroundWriter()
    variables = {"v": tf.Variable(tf.ones([4, 1000])), "scalar": tf.Variable(3.0)}
    before = {name: variable.numpy() for name, variable in variables.items()}
    extra = {"hook": {"best": [1]}}
    directory.save(1, variables, extra, background=writer)
    update(variables["v"])
    variables["scalar"].assign(4.0)
    extra["hook"]["best"].append(2)
    assert variables["v"].numpy()[0, 0] != 1.0 and directory.steps() == []
    directory.go.set()
    writer.wait()
    found = restored(directory, 1, variables)
    np.testing.assert_equal(found, before)
    assert directory.restore(directory.at(1), variables) == {"hook": {"best": [1]}}


def test_in_place_updates_after_the_save_are_not_written(tmp_path):
    directory, writer = Held(tmp_path), BackgroundWriter()
    weights = keras.Variable(tf.ones([1000]), name="w")
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([weights])
    variables = {"w": weights.value} | {v.path: v.value for v in optimizer.variables}
    update = tf.function(lambda: optimizer.apply([tf.ones([1000])], [weights]))
    update()
    before = {name: variable.numpy() for name, variable in variables.items()}
    directory.save(1, variables, background=writer)
    for _ in range(3):
        update()
    directory.go.set()
    writer.wait()
    np.testing.assert_equal(restored(directory, 1, variables), before)


def test_it_returns_before_it_is_written_and_the_next_save_waits(tmp_path):
    directory, writer = Held(tmp_path), BackgroundWriter()
    variable = tf.Variable(tf.ones([1000]))
    assert directory.save(1, {"v": variable}, background=writer) == tmp_path / "step_00000001"
    assert directory.steps() == []
    timer = threading.Timer(0.2, directory.go.set)
    timer.start()
    began = time.monotonic()
    variable.assign(variable * 2)
    directory.save(2, {"v": variable}, background=writer)
    assert time.monotonic() - began >= 0.2 and 1 in directory.steps()
    writer.wait()
    assert directory.steps() == [1, 2]
    assert [restored(directory, step, {"v": variable})["v"][0] for step in (1, 2)] == [1, 2]
    writer.wait()  # there is nothing to wait for


def test_another_shape_gets_another_buffer(tmp_path):
    directory, writer = CheckpointDirectory(tmp_path), BackgroundWriter()
    for step, shape in enumerate(([3], [4, 2], [3]), 1):
        variables = {"v": tf.Variable(tf.fill(shape, float(step)))}
        directory.save(step, variables, background=writer)
        writer.wait()
        assert (restored(directory, step, variables)["v"] == step).all()


@pytest.mark.parametrize("at", ["the next save", "wait"])
def test_an_error_is_raised_once_and_names_the_checkpoint(at, tmp_path):
    place = tmp_path / "c"
    place.write_text("in the way")
    directory, writer = CheckpointDirectory(place), BackgroundWriter()
    variables = {"v": tf.Variable(1.0)}
    directory.save(1, variables, background=writer)
    with pytest.raises(CheckpointWriteError, match=f"{place}/step_00000001 can't be written"):
        if at == "wait":
            writer.wait()
        else:
            directory.save(2, variables, background=writer)
    place.unlink()
    directory.save(3, variables, background=writer)
    writer.wait()
    assert directory.steps() == [3]


def test_values_that_are_not_finite_are_found_in_the_background_too(tmp_path):
    directory, writer = CheckpointDirectory(tmp_path), BackgroundWriter()
    directory.save(1, {"v": keras.Variable(np.nan)}, background=writer)
    with pytest.raises(CheckpointError, match="step 1: NaN or infinite values in 'v'"):
        writer.wait()
    assert directory.steps() == []


def test_then_is_not_called_after_a_failed_write():
    writer, done = BackgroundWriter(), []
    writer.start(lambda: done.append("write"))
    writer.then(lambda: done.append("then"))
    writer.wait()
    assert done == ["write", "then"]
    writer.start(lambda: 1 / 0)
    writer.then(lambda: done.append("not this"))
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    assert done == ["write", "then"]


_ENDS_WITHOUT_WAITING = """
import sys, time
from tfloss.checkpoint import BackgroundWriter, CheckpointFiles

def fill(folder):
    time.sleep(1)  # meanwhile the main program ends
    (folder / "values").write_bytes(b"all of them")

files = CheckpointFiles(sys.argv[1])
BackgroundWriter().start(lambda: files.write(1, fill, {}))
"""


def test_a_program_that_ends_during_a_write_completes_it(tmp_path):
    command = [sys.executable, "-c", _ENDS_WITHOUT_WAITING, str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    files = CheckpointFiles(tmp_path)
    assert files.steps() == [1] and files.problem(1) is None
