"""Workers compare the traced steps and the hyperparameters."""

import concurrent.futures
import re

import keras
import pytest
import tensorflow as tf

from tests.distribute.channels import channels
from tests.toys import Line
from tfloss.distribute.agreement import Agreement
from tfloss.engine.trace_comparison import compare_hyperparameters, compare_traces
from tfloss.errors import WorkerError
from tfloss.step.output import StepOutput
from tfloss.step.train_step import TrainStep


class _Worker(Agreement):
    def __init__(self, channel):
        super().__init__(tf.distribute.get_strategy())
        self.index, self.workers, self._channel = channel.rank, 2, channel


def both(function):
    """What `function(agreement)` gives on each of two workers, or its error."""

    def call(channel):
        try:
            return function(_Worker(channel))
        except WorkerError as error:
            return str(error)

    with channels(2) as made, concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, made))


def output(loss="mse", dropped=()):
    tag = f"losses/{loss}"
    return StepOutput({tag: tf.constant(0.0)}, dropped=dropped, losses={tag: loss})


def graph(factor=2.0):
    function = tf.function(lambda x: x * factor, autograph=False)
    return function.get_concrete_function(tf.TensorSpec([], tf.float32)).graph


def test_equal_steps_pass():
    graphs = [graph(), graph()]
    assert both(lambda one: compare_traces(one, graphs[one.index], output())) == [None, None]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (output("other"), 'the losses is ["mse"] on worker 0, ["other"] on worker 1'),
        (output(dropped=("hidden",)), 'the summaries is [] on worker 0, ["hidden"] on worker 1'),
    ],
)
def test_other_losses_and_summaries_are_named(other, message):
    same = graph()
    found = both(lambda one: compare_traces(one, same, [output(), other][one.index]))
    assert all(message in one for one in found)


def test_other_ops_are_named_with_their_line():
    graphs = [graph(2.0), graph(3.0)]
    for message in both(lambda one: compare_traces(one, graphs[one.index], output())):
        assert re.search(
            r"= 2. occurs: 1 on worker 0, 0 on worker 1 \(\S+test_trace_comparison.py:\d+", message
        )
        assert "= 3. occurs: 0 on worker 0, 1 on worker 1" in message


def test_other_hyperparameters_are_named():
    steps = [TrainStep(Line(), keras.optimizers.Adam(0.1)) for _ in range(2)]
    assert both(lambda one: compare_hyperparameters(one, steps[one.index])) == [None, None]
    steps[1].groups["optimizer"].optimizer.learning_rate.assign(0.5)
    for message in both(lambda one: compare_hyperparameters(one, steps[one.index])):
        assert "optimizer/learning_rate is 0.1 on worker 0, 0.5 on worker 1" in message
        assert "must set them on all workers" in message
