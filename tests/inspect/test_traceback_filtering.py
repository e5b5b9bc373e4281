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


def test_several_errors_of_replicas_are_said_once():
    message = """Graph execution error:

2 root error(s) found.
  (0) INVALID_ARGUMENT:  indices = 9 is not in [0, 4)
\t [[{{node GatherV2}}]]
\t [[while/body/_1/while/Add_2/_54]]
  (1) INVALID_ARGUMENT:  indices = 9 is not in [0, 4)
\t [[{{node GatherV2}}]]
0 successful operations.
0 derived errors ignored. [Op:__inference__loop_1046]"""
    assert short_message(message) == "indices = 9 is not in [0, 4)"


class FailingInference(keras.Model):
    """A model whose inference forward fails."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, batch, training=False):
        found = self.dense(batch)
        return tf.reduce_mean(found) if training else tf.matmul(found, tf.ones([7, 2]))


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_the_inference_forward_is_the_models_own(count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        model, optimizer = FailingInference(), keras.optimizers.SGD()
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False)
    mean = tfloss.metric(keras.metrics.Mean(), lambda batch, predictions: (predictions,))
    data = tf.data.Dataset.from_tensors(tf.zeros([4, 2]))
    with pytest.raises(ValueError, match="Dimensions must be equal") as e:
        trainer.evaluate(data, {"mean": mean})
    text = "".join(traceback.format_exception(e.value))
    assert "\x1b" not in text and "Arguments received by" not in text
    assert set(files(e.value)) == {__file__}
    assert f"batch: float32 ({4 // count}, 2)" in text


class NestedFunction(keras.Model):
    """A model with a tf.function of the user, which AutoGraph converts."""

    def __init__(self, kind):
        super().__init__()
        self.dense, self.kind = keras.layers.Dense(1), kind

    @tf.function
    def inner(self, x):
        if self.kind == "shape":
            return tf.matmul(x, tf.ones([7, 2]))
        return {"a": x}["label"]

    def call(self, batch, training=False):
        return tf.reduce_mean(self.inner(self.dense(batch)))


@pytest.mark.parametrize(("kind", "said"), [("shape", "Dimensions must be"), ("key", "'label'")])
def test_an_error_that_autograph_has_rewritten_is_short(kind, said):
    model = NestedFunction(kind)
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(), default_hooks=False)
    with pytest.raises((ValueError, KeyError)) as e:
        trainer.train(tf.data.Dataset.from_tensors(tf.zeros([4, 2])).repeat(), 1)
    text = str(e.value)
    assert said in text and "in user code" not in text
    assert f"In: {__file__}:" in text and text.rstrip("'\"").endswith("(in inner)")
    assert len(text.splitlines()) == 2
