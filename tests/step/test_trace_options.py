"""A step is traced with the options of the call, whatever other traces of it were given."""

import keras
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss import summary
from tfloss.step.trace_options import TraceOptions
from tfloss.step.train_step import TrainStep


def _report(model, batch, y):
    summary.scalar("mean", tf.reduce_mean(y))
    return {"loss": tf.reduce_mean(y)}


class _Refusing:
    """A guard that notes what it is shown and refuses all of it."""

    def __init__(self):
        self.names, self.start = None, None

    def snapshot(self):
        return "before"

    def snapshot_all(self):
        return "start"

    def __call__(self, check, micro_batches, before, start, backward):
        assert (before, start) == ("before", self.start) and len(micro_batches) == 1
        self.names, self.groups, self.due = check.losses, check.groups, backward.due
        return tf.debugging.Assert(False, ["refused"])


def _traced(train_step, iterator, options=None):
    found = []

    @tf.function(autograph=False)
    def one():
        found.append(train_step(train_step.take(iterator), options))
        return found[0].row()

    return found, one


def test_a_step_needs_no_options():
    train_step, iterator = make_step(lambda: Line(_report), rows([1.0], 1))

    @tf.function(autograph=False)
    def one():
        return train_step(train_step.take(iterator)).scalars["losses/loss"]

    assert float(one()) == 1.0
    assert train_step.counter.numpy() == 1


def test_each_trace_has_its_own_options():
    train_step, iterator = make_step(lambda: Line(_report), rows([1.0], 1))
    guard = _Refusing()
    recorded, recording = _traced(train_step, iterator, TraceOptions(recording=True))
    compiled, step = _traced(train_step, iterator, TraceOptions(mode="step"))
    guarded, refused = _traced(train_step, iterator, TraceOptions(guard=guard))
    silent, plain = _traced(train_step, iterator)
    for function in (recording, step, plain):
        function()
    with pytest.raises(tf.errors.InvalidArgumentError, match="refused"):
        refused()
    assert train_step.counter.numpy() == 3
    assert (guard.names, guard.groups) == (("loss", "total"), ())
    assert "mean" in recorded[0].scalars and not recorded[0].dropped
    for found in (compiled, guarded, silent):
        assert "mean" not in found[0].scalars and found[0].dropped
    assert len(compiled[0].graphs) == 1
    assert recorded[0].graphs == guarded[0].graphs == silent[0].graphs == []


def test_gradients_are_checked_if_asked_for():
    train_step, iterator = make_step(lambda: Line(_report), rows([1.0], 1))
    guard = _Refusing()
    _, refused = _traced(train_step, iterator, TraceOptions(guard=guard, check_gradients=True))
    with pytest.raises(tf.errors.InvalidArgumentError, match="refused"):
        refused()
    assert guard.groups == guard.due == ("optimizer",)


def test_a_step_of_its_own_is_read_before_it_begins():
    class Twice(TrainStep):
        def step(self, batch):
            self.minimize(self.forward, batch)
            return self.minimize(lambda batch: {"second": self.model.w}, batch)

    train_step, iterator = make_step(lambda: Line(_report), rows([1.0], 1), step=Twice)
    guard = _Refusing()
    guard.start = "start"
    _, refused = _traced(train_step, iterator, TraceOptions(guard=guard))
    with pytest.raises(tf.errors.InvalidArgumentError, match="refused"):
        refused()


def test_a_compiled_loop_can_not_have_a_guard():
    with pytest.raises(ValueError, match="can't have a guard"):
        TraceOptions(mode="loop", guard=_Refusing())


def test_minimize_is_for_steps_only():
    train_step, _ = make_step(Line, rows([1.0], 1), optimizer=lambda: keras.optimizers.SGD(0.1))
    with pytest.raises(RuntimeError, match="only be called from TrainStep.step"):
        train_step.minimize(train_step.forward, {"x": tf.ones([1])})
