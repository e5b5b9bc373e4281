"""A trainer adds its own hooks, where the user has none of the same class."""

import pytest

from tfloss.hooks import (
    Every,
    Hook,
    MetricsFile,
    NaNGuard,
    Progress,
    SaveCheckpoint,
    TensorBoard,
    Watchdog,
)
from tfloss.trainer.default_hooks import DefaultHooks


def classes(hooks):
    return [type(hook) for hook in hooks]


def test_without_a_workdir_nothing_is_written():
    assert classes(DefaultHooks(True, workdir=False).after([])) == [NaNGuard, Progress]


def test_with_a_workdir_checkpoints_and_writers_follow_the_users_hooks():
    class Mine(Hook):
        pass

    found = DefaultHooks(True, workdir=True).after([Mine()])
    assert classes(found) == [Mine, NaNGuard, SaveCheckpoint, TensorBoard, MetricsFile, Progress]


def test_a_hook_of_the_same_class_replaces_the_default_one():
    mine = SaveCheckpoint(Every(steps=10))
    found = DefaultHooks(True, workdir=True).after([mine])
    assert [hook for hook in found if isinstance(hook, SaveCheckpoint)] == [mine]


def test_the_same_default_hooks_are_used_in_every_call():
    defaults = DefaultHooks(True, workdir=True)
    assert defaults.after([]) == defaults.after([])


def test_they_can_be_left_out():
    assert DefaultHooks(False, workdir=True).after([]) == []


def test_a_trigger_that_is_none_is_refused_by_the_name_of_its_hook():
    class Mine(Hook):
        every = 100

    with pytest.raises(ValueError, match="Mine: every=100 is not a trigger"):
        DefaultHooks(True, workdir=False).after([Mine()])


def test_several_workers_are_watched():
    found = DefaultHooks(True, workdir=False, workers=2).after([])
    assert classes(found) == [NaNGuard, Progress, Watchdog]
