"""Hooks are called in order, at their steps, and every one that has begun ends."""

import pytest
import tensorflow as tf

from tfloss.distribute.agreement import Agreement
from tfloss.errors import Aborted, Preempted
from tfloss.hooks import Every, Hook, OnSteps, RunInfo
from tfloss.trainer.hook_list import HookList, set_hook_states
from tfloss.trainer.run_state import RunState

CALLS = []


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


class Witness(Hook):
    def __init__(self, name, *, every=None, bucket="hooks", raises=None, at="after_step"):
        self.name, self.every, self.time_bucket = name, every, bucket
        self.raises, self.at = raises, at

    def _note(self, method):
        CALLS.append((self.name, method))
        if self.raises is not None and self.at == method:
            raise self.raises

    def before_train(self):
        self._note("before_train")

    def after_step(self, step):
        self._note("after_step")

    def on_log(self, step, scalars, summaries):
        self._note(f"on_log {step}")

    def before_save(self, step):
        self._note("before_save")

    def after_train(self):
        self._note("after_train")


def listed(*hooks, chief=True):
    agreement = Agreement(tf.distribute.get_strategy())
    agreement.chief = chief
    counter = tf.Variable(0, dtype=tf.int64)
    run = RunState(counter, agreement, log_every=10, log_every_step=False)
    run.begin(RunInfo(0, 100))
    return HookList(hooks, run, trainer="the trainer"), run


def test_those_that_save_checkpoints_come_last_at_a_step_and_at_the_end():
    hooks, run = listed(
        Witness("saves", every=Every(steps=2), bucket="checkpoint"),
        Witness("a", every=Every(steps=2)),
        Witness("b", every=Every(steps=3)),
    )
    assert all(hook.trainer == "the trainer" for hook in hooks)
    with hooks.running(lambda: CALLS.append(("background", "finish"))):
        assert hooks.next_due(0) == 2 and hooks.next_due(2) == 3
        CALLS.clear()
        run.step = 6
        hooks.after_step()
        assert CALLS == [("a", "after_step"), ("b", "after_step"), ("saves", "after_step")]
        CALLS.clear()
    assert CALLS == [
        ("a", "after_train"),
        ("b", "after_train"),
        ("saves", "after_train"),
        ("background", "finish"),
    ]


def test_those_that_use_results_come_after_those_that_produce_them():
    uses = Witness("uses", every=Every(steps=1))
    uses.uses_results = True
    hooks, run = listed(
        Witness("saves", every=Every(steps=1), bucket="checkpoint"),
        uses,
        Witness("produces", every=Every(steps=1)),
    )
    with hooks.running(lambda: None):
        CALLS.clear()
        run.step = 1
        hooks.after_step()
    expected = ["produces", "uses", "saves"]
    assert CALLS == [(n, m) for m in ("after_step", "after_train") for n in expected]


def test_nobody_is_due_where_nobody_asks():
    hooks, _ = listed(Witness("a"), Witness("b", every=OnSteps(5)))
    with hooks.running(lambda: None):
        assert hooks.next_due(4) == 5
        assert hooks.next_due(5) is None


def test_preemption_waits_until_all_hooks_of_the_step_were_called():
    hooks, run = listed(
        Witness("a", every=Every(steps=1), raises=Preempted()), Witness("b", every=Every(steps=1))
    )
    run.step = 1
    with pytest.raises(Preempted), hooks.running(lambda: None):
        hooks.after_step()
    assert ("b", "after_step") in CALLS
    assert isinstance(run.error, Preempted)


def test_each_hook_that_began_ends_and_the_first_error_is_raised():
    hooks, run = listed(
        Witness("a", raises=OSError("disk"), at="after_train"),
        Witness("b", raises=ValueError("later"), at="after_train"),
        Witness("c"),
    )
    with pytest.raises(OSError, match="disk"), hooks.running(lambda: None):
        pass
    assert [name for name, method in CALLS if method == "after_train"] == ["a", "b", "c"]
    assert isinstance(run.error, OSError)


def test_a_hook_that_does_not_begin_leaves_those_after_it_alone():
    hooks, run = listed(
        Witness("a"), Witness("b", raises=ValueError("no"), at="before_train"), Witness("c")
    )
    with pytest.raises(ValueError, match="no"), hooks.running(lambda: None):
        raise AssertionError("the steps must not run")
    assert [name for name, method in CALLS if method == "after_train"] == ["a", "b"]
    assert isinstance(run.error, ValueError)


def test_the_error_of_the_steps_comes_before_that_of_a_hook():
    hooks, run = listed(Witness("a", raises=OSError("disk"), at="after_train"))
    with pytest.raises(ZeroDivisionError), hooks.running(lambda: None):
        raise ZeroDivisionError
    assert isinstance(run.error, ZeroDivisionError)


def test_ctrl_c_while_they_end_is_told_to_those_after():
    seen = []

    class Last(Witness):
        def after_train(self):
            seen.append(run.error)

    hooks, run = listed(
        Witness("a", raises=KeyboardInterrupt(), at="after_train"), Last("b", bucket="checkpoint")
    )
    with pytest.raises(Aborted), hooks.running(lambda: None):
        pass
    assert isinstance(seen[0], Aborted)


def test_an_error_of_the_background_writer_is_raised_at_the_end():
    def finish():
        raise OSError("background")

    hooks, run = listed(Witness("a"))
    with pytest.raises(OSError, match="background"), hooks.running(finish):
        pass
    assert isinstance(run.error, OSError)


def test_writers_are_called_on_the_first_worker_only():
    class Writer(Witness):
        chief_only = True

    for chief, expected in [(True, ["writer", "a"]), (False, ["a"])]:
        CALLS.clear()
        hooks, _ = listed(Writer("writer"), Witness("a"), chief=chief)
        with hooks.running(lambda: None):
            hooks.before_save()
            hooks.log(1, {"x": 1.0})
        for method in ("before_train", "before_save", "on_log 1", "after_train"):
            assert [name for name, each in CALLS if each == method] == expected


def test_steps_are_logged_hook_by_hook_in_order():
    hooks, _ = listed(Witness("a"), Witness("b"))
    hooks.log_steps([(1, {}), (2, {})])
    assert CALLS == [("a", "on_log 1"), ("a", "on_log 2"), ("b", "on_log 1"), ("b", "on_log 2")]


def test_logs_may_be_late_only_if_all_who_listen_allow_it():
    class Late(Witness):
        async_logs = True

    class Deaf(Hook):
        pass

    assert listed(Late("a"), Deaf())[0].async_logs
    assert not listed(Late("a"), Witness("b"))[0].async_logs


def test_states_are_saved_by_class_name_and_number():
    first, second = Witness("a"), Witness("b")
    first.state["n"], second.state["n"] = 1, 2
    hooks, _ = listed(first, second)
    states = hooks.states()
    assert states == {"Witness": {"n": 1}, "Witness_1": {"n": 2}}
    fresh = [Witness("a"), Witness("b"), Witness("c")]
    fresh[2].state["n"] = 3
    set_hook_states(fresh, states)
    assert [hook.state for hook in fresh] == [{"n": 1}, {"n": 2}, {}]
