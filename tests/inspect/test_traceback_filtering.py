"""Errors that leave an entry point of tfloss have the user's frames only."""

import traceback

import keras
import pytest
import tensorflow as tf

import tfloss
from tfloss.inspect.traceback_filtering import filtered_tracebacks, short_message


class Failing(keras.Model):
    """A model with a layer, whose training forward raises the given error."""

    def __init__(self, error):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.error = error

    def call(self, batch, training=False):
        self.dense(batch)
        raise self.error


def test_a_locked_cache_is_explained(tmp_path):
    lock = tmp_path / "cache_0.lockfile"
    lock.write_text("Created at: 0")  # what a killed process leaves
    data = tf.data.Dataset.range(40).cache(f"{tmp_path}/cache").batch(2)
    with pytest.raises(tf.errors.AlreadyExistsError) as e:
        next(iter(data))
    message = short_message(str(e.value))
    assert message.startswith(f"The cache of the data set is locked: '{lock}' exists.")
    assert "delete that file and start again" in message
    lock.unlink()
    assert len(list(data)) == 20


class TwoArgumentsError(Exception):
    """Keras can't copy it, and would raise a RuntimeError."""

    def __init__(self, first, second):
        super().__init__(first, second)
        self.second = second


def train(error, count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        model, optimizer = Failing(error), keras.optimizers.SGD()
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False)
    trainer.train(tf.data.Dataset.from_tensors(tf.zeros([4, 2])).repeat(), 1)


def files(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("error", [KeyError("label"), TwoArgumentsError("a", 2)])
def test_the_error_is_the_models_own(error, count, replicas):
    with pytest.raises(type(error)) as e:
        train(error, count, replicas)
    assert e.value is error
    assert set(files(error)) == {__file__}
    assert traceback.extract_tb(error.__traceback__)[-1].name == "call"
    assert keras.config.is_traceback_filtering_enabled()


def test_all_frames_are_shown_on_request(replicas):
    keras.config.disable_traceback_filtering()
    try:
        with pytest.raises(KeyError) as e:
            train(KeyError("label"), 1, replicas)
    finally:
        keras.config.enable_traceback_filtering()
    assert any("keras" in file for file in files(e.value))
    assert any("trainer.py" in file for file in files(e.value))


def test_a_bug_in_a_library_keeps_its_frames():
    with pytest.raises(Exception) as e:
        filtered_tracebacks(keras.ops.reshape)(tf.zeros([3]), object())
    assert any("keras" in file for file in files(e.value))


def test_the_cause_is_filtered_too():
    @filtered_tracebacks
    def entry_point():
        list(map(own_code, [1]))

    def own_code(_):
        try:
            Failing(KeyError("inner"))(tf.zeros([1, 2]))
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as e:
        entry_point()
    assert isinstance(e.value.__cause__, KeyError)
    assert set(files(e.value.__cause__)) == {__file__}


def test_a_message_of_a_graph_keeps_what_the_op_said_and_the_users_line():
    library = tf.__file__.replace("__init__.py", "python/ops.py")
    message = f'''Graph execution error:

Detected at node GatherV2 defined at (most recent call last):
  File "train.py", line 40, in <module>

  File "{library}", line 7, in __call__

  File "model.py", line 12, in call

  File "{library}", line 9, in gather

indices[0] = 100 is not in [0, 8)
\t [[{{{{node GatherV2}}}}]] [Op:__inference_loop_123]'''
    assert short_message(message) == "indices[0] = 100 is not in [0, 8)\nIn: model.py:12 (in call)"


def test_a_message_without_stack_traces_stays():
    assert short_message("Out of memory [0, 8)") == "Out of memory [0, 8)"
