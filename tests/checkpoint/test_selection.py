"""Which checkpoint is selected, by what the checkpoints themselves say."""

import logging

import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory
from tfloss.checkpoint.selection import METRICS, Metrics, saved_metrics, select
from tfloss.errors import CheckpointDeletedError, CheckpointError

LOGGER = logging.getLogger("test")


@pytest.fixture
def files(tmp_path):
    """Steps 1 to 4: accuracy 0.5, 0.9, 0.9 and none; word errors of no known direction."""
    directory = CheckpointDirectory(tmp_path)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.9), (4, float("nan"))):
        scalars = {"val/accuracy": accuracy, "val/errors": 10.0 - step, "losses/total": 1.0 / step}
        scalars |= {"time/hooks_fraction": 0.5, "steps_per_second": 3.0}
        modes = {"val/accuracy": "max", "losses/total": "min"}
        directory.save(step, {"w": tf.Variable(1.0)}, {METRICS: saved_metrics(scalars, modes)})
    return directory


def test_what_a_checkpoint_keeps_of_a_log():
    scalars = {"a": 1, "b": float("inf"), "input/wait_fraction": 0.1, "examples_per_second": 2.0}
    assert saved_metrics(scalars, {"a": "min"}) == {"a": {"value": 1.0, "mode": "min"}}


def test_the_newest_a_step_or_the_best(files):
    assert select(files, LOGGER) == 4
    assert select(files, LOGGER, step=2) == 2
    assert select(files, LOGGER, best="val/accuracy") == 2  # of equal ones the earlier one
    assert select(files, LOGGER, best="val/accuracy", mode="min") == 1
    assert select(files, LOGGER, best="losses/total") == 4
    assert set(Metrics(files).values) == {"val/accuracy", "val/errors", "losses/total"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"step": 5}, "no checkpoint of step 5 in .*There are checkpoints of: 1, 2, 3, 4."),
        ({"best": "val/acuracy"}, "value of 'val/acuracy'. Did you mean 'val/accuracy'.*'losses/t"),
        ({"best": "val/errors"}, "lower or higher values of 'val/errors'.* 8 at step 2.*its step"),
    ],
)
def test_what_there_is_not_is_answered_by_what_there_is(files, wanted, message):
    with pytest.raises(CheckpointError, match=message):
        select(files, LOGGER, **wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"step": 2, "best": "val/accuracy"}, "step=2 and best='val/accuracy': give one"),
        ({"step": 2.0}, "step=2.0 must be the step"),
        ({"step": True}, "step=True must be the step"),
        ({"best": 3}, "best=3 must be the name of a metric"),
        ({"best": ""}, "best='' must be the name of a metric"),
    ],
)
def test_arguments_of_another_type(files, wanted, message):
    with pytest.raises(ValueError, match=message):
        select(files, LOGGER, **wanted)


def test_the_direction_that_a_hook_was_given(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    for step in (1, 2):
        metrics = saved_metrics({"val/errors": float(step)}, {})
        hooks = {"Evaluate": {}, "EarlyStopping": {"metric": "val/errors", "mode": "min"}}
        directory.save(step, {"w": tf.Variable(1.0)}, {METRICS: metrics, "hooks": hooks})
    assert select(directory, LOGGER, best="val/errors") == 1


def test_corrupt_checkpoints(files, caplog):
    (files.at(2) / "variables.index").unlink()
    with pytest.raises(CheckpointError, match=r"step_00000002 is corrupt: .*Valid ones: 1, 3, 4\."):
        select(files, LOGGER, step=2)
    with caplog.at_level(logging.INFO):
        assert select(files, LOGGER, best="val/accuracy") == 3  # as good, and valid
    assert "Skipping checkpoint" in caplog.text and "step_00000002" in caplog.text
    (files.at(3) / "manifest.json").write_text("{}")  # what it says is not known
    assert select(files, LOGGER, best="val/accuracy") == 1
    for step in (1, 4):
        (files.at(step) / "variables.index").unlink()
    with pytest.raises(CheckpointError, match="None of the checkpoints in .* is valid"):
        select(files, LOGGER, best="val/accuracy")


@pytest.mark.parametrize(
    ("wanted", "deleted", "found"), [({}, 4, 3), ({"best": "val/accuracy"}, 2, 3)]
)
def test_another_one_is_selected_if_it_is_deleted_meanwhile(
    files, monkeypatch, caplog, wanted, deleted, found
):
    check = files.problem

    def problem(step):
        if step == deleted:
            files.delete(step)
        return check(step)

    monkeypatch.setattr(files, "problem", problem)
    with caplog.at_level(logging.INFO):
        assert select(files, LOGGER, **wanted) == found
    assert "corrupt" not in caplog.text


def test_a_step_that_is_deleted_meanwhile_is_not_corrupt(files, monkeypatch):
    check = files.problem
    monkeypatch.setattr(files, "problem", lambda step: (files.delete(step), check(step))[1])
    with pytest.raises(CheckpointDeletedError):
        select(files, LOGGER, step=2)
    with pytest.raises(CheckpointDeletedError, match="no checkpoint of step 2"):
        select(files, LOGGER, step=2)


def test_a_checkpoint_is_deleted_each_time(files, monkeypatch):
    """A trainer that is faster than the reader. It ends in an error."""

    def problem(step):
        raise CheckpointDeletedError(f"deleted {step}")

    monkeypatch.setattr(files, "problem", problem)
    with pytest.raises(CheckpointDeletedError, match="deleted 4"):
        select(files, LOGGER)


def test_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        select(CheckpointDirectory(tmp_path), LOGGER, step=1)


def test_checkpoints_without_any_values(tmp_path):
    CheckpointDirectory(tmp_path).save(1, {"w": tf.Variable(1.0)})
    with pytest.raises(CheckpointError, match="value of 'a'. A checkpoint has the values that"):
        select(CheckpointDirectory(tmp_path), LOGGER, best="a")
