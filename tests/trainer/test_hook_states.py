"""A hook gets its own state back: in another order, with others beside it, of any Python values."""

import collections
import math

import keras
import numpy as np
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import EarlyStopping, Evaluate, Every, Hook, SaveCheckpoint
from tfloss.trainer.hook_states import hook_arguments, hook_states, set_hook_states


class Count(Hook):
    every = Every(steps=1)

    def __init__(self, tag="a", by=1):
        self.tag, self.by = tag, by

    def after_step(self, step):
        self.state["sum"] = self.state.get("sum", 0) + self.by


def stopping(metric, patience):
    return EarlyStopping(metric, patience=patience, mode="max")


def states_after(saved, now):
    """The states that hooks get which were saved with the states 0, 1, 2, ..."""
    for index, hook in enumerate(saved):
        hook.state["is"] = index
    set_hook_states(now, hook_states(saved), hook_arguments(saved))
    return [hook.state.get("is") for hook in now]


@pytest.mark.parametrize(
    ("saved", "now", "expected"),
    [
        ([Count("a"), Count("b")], [Count("b"), Count("a")], [1, 0]),
        ([Count("a"), Count("b")], [Count("b")], [1]),
        ([Count("b")], [Count("a"), Count("b")], [None, 0]),
        ([Count("b", 1)], [Count("a", 1), Count("b", 5)], [None, 0]),  # tuned, and one added
        ([Count("a", 1), Count("b", 2)], [Count("b", 3), Count("a", 4)], [1, 0]),
        ([Count(), Count()], [Count(), Count()], [0, 1]),  # nothing tells them apart but the order
        ([Count(tag="x")], [Count("y")], [0]),  # the only one of its class
        (
            [
                EarlyStopping("a", patience=2, mode="max"),
                EarlyStopping("b", patience=2, mode="max"),
            ],
            [
                EarlyStopping("b", patience=9, mode="max"),
                EarlyStopping("a", patience=2, mode="max"),
            ],
            [1, 0],
        ),
        ([Evaluate(1, {}, name="val")], [Evaluate(2, {}, name="test"), Evaluate(3, {})], [None, 0]),
    ],
)
def test_each_hook_gets_its_own_state(saved, now, expected):
    assert states_after(saved, now) == expected


def test_a_checkpoint_without_arguments_goes_by_the_order():
    hooks = [Count("b"), Count("a")]
    set_hook_states(hooks, {"Count": {"sum": 1}, "Count_1": {"sum": 2}})
    assert [hook.state for hook in hooks] == [{"sum": 1}, {"sum": 2}]


@pytest.mark.promise(48)
def test_two_hooks_of_one_class_in_another_order(tmp_path):
    """They count by 1 and by 10, so 5 steps make 5 and 50."""
    for steps, tags in ((2, "ab"), (5, "ba")):
        hooks = {tag: Count(tag, {"a": 1, "b": 10}[tag]) for tag in tags}
        trainer = tfloss.Trainer(
            Line(),
            keras.optimizers.SGD(0.1),
            workdir=tmp_path,
            jit=False,
            default_hooks=False,
            hooks=[*hooks.values(), SaveCheckpoint()],
        )
        trainer.train(rows([1.0], 1), steps)
    assert {tag: hook.state["sum"] for tag, hook in hooks.items()} == {"a": 5, "b": 50}


@pytest.mark.promise(48)
@pytest.mark.upstream
def test_keras_forgets_what_its_callbacks_count(tmp_path):
    """Patience 2 is exhausted in epoch 3; after a restart in epoch 2, `fit` runs 2 epochs more."""

    def fit(epochs):
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        stop = keras.callbacks.EarlyStopping("loss", patience=2)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
        ones = np.ones([2, 1])
        history = model.fit(ones, ones, epochs=epochs, callbacks=[stop, backup], verbose=0)
        return history.epoch

    assert fit(2) == [0, 1]
    assert fit(9) == [2, 3, 4]  # 2 alone, if the count of epoch 1 were kept


def test_a_state_of_any_python_values_comes_back(tmp_path):
    value = {
        1: (2, 3),
        (0, "x"): np.float32(0.1),
        "nan": math.nan,
        "seen": collections.Counter({7: 2}),
        "set": {1, 2},
    }

    class Keep(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            if step == 1:
                self.state["value"] = value

    for steps in (1, 2):
        keep = Keep()
        hooks = [keep, SaveCheckpoint()]
        trainer = tfloss.Trainer(
            Line(), keras.optimizers.SGD(0.1), workdir=tmp_path, jit=False, hooks=hooks
        )
        trainer.train(rows([1.0], 1), steps)
    found = keep.state["value"]
    assert found is not value and repr(found) == repr(value)


def test_a_state_that_a_checkpoint_can_not_hold_is_named(tmp_path):
    class Keep(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            self.state["model"] = self.trainer.model

    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), workdir=tmp_path, jit=False, hooks=[Keep()]
    )
    with pytest.raises(TypeError, match=r"state of the hook Keep, state\['model'\] is a .*Line"):
        trainer.train(rows([1.0], 1), 1)
