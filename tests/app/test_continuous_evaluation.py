"""`--mode=eval --follow`: each checkpoint of a run is evaluated once."""

import json
import logging
import threading

import keras
import pytest
import tensorflow as tf

import tfloss
from tfloss.app.continuous_evaluation import EvaluationRecord, follow
from tfloss.checkpoint import CheckpointDirectory
from tfloss.errors import CheckpointError, WorkdirInUseError


class Count(keras.Model):
    """Its weight is the number of completed steps."""

    def __init__(self):
        super().__init__(name="count")
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")

    def call(self, batch, training=False):
        return {"loss": -self.w} if training else self.w * tf.ones_like(batch)


class StopAt(tfloss.Hook):
    every = tfloss.Every(steps=1)

    def __init__(self, step):
        self.step = step

    def after_step(self, step):
        if step == self.step:
            self.trainer.stop("enough")


DATA = tf.data.Dataset.from_tensors(tf.ones([1])).repeat()


def trainer_in(path, *hooks, every=2):
    save = tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=every), keep_last=None)
    return tfloss.Trainer(
        Count(),
        keras.optimizers.SGD(1.0),
        workdir=path,
        hooks=[*hooks, save],
        default_hooks=False,
        jit=False,
    )


@pytest.fixture
def follower(tmp_path):
    """`follower(**options)` follows the run: the steps that were evaluated, and the results."""

    def run(evaluate=None, **options):
        trainer, seen = trainer_in(tmp_path), []

        def note():
            seen.append(trainer.step)
            return {"w": float(trainer.model.w), **(evaluate or dict)()}

        found = follow(trainer, DATA, note, **options)
        return seen, found

    return run


def records(path):
    """`{step: value}` of the lines, which must be the same in TensorBoard's files."""
    lines = [json.loads(line) for line in (path / "eval/metrics.jsonl").read_text().splitlines()]
    events = []
    for file in (path / "eval").glob("*tfevents*"):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            events += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    assert sorted(events) == sorted((one["step"], "Metrics/w", one["val/w"]) for one in lines)
    assert len({one["step"] for one in lines}) == len(lines)
    return {one["step"]: one["val/w"] for one in lines}


@pytest.mark.parametrize(("newest_first", "order"), [(False, [2, 4, 6]), (True, [6, 4, 2])])
def test_each_checkpoint_is_evaluated_once_until_the_run_has_ended(
    follower, tmp_path, newest_first, order, capsys
):
    trainer_in(tmp_path).train(DATA, 6)
    assert follower(newest_first=newest_first) == (order, {"w": 6.0})
    assert records(tmp_path) == {2: 2.0, 4: 4.0, 6: 6.0}
    assert capsys.readouterr().out.splitlines() == [f"step {s}  val/w {s}" for s in order]
    assert follower() == ([], {"w": 6.0})  # started again


def test_a_run_that_was_stopped_early_has_ended(follower, tmp_path):
    trainer_in(tmp_path, StopAt(3)).train(DATA, 100)
    assert follower() == ([2, 3], {"w": 3.0})


def test_a_checkpoint_in_the_middle_of_a_run_is_not_the_end(follower, tmp_path):
    """The run was killed after step 4 of 6. It is started again while the follower waits."""
    trainer_in(tmp_path).train(DATA, 6)
    CheckpointDirectory(tmp_path / "checkpoints").delete(6)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        trainer_in(tmp_path).train(DATA, 6)

    assert follower(wait=wait) == ([2, 4, 6], {"w": 6.0})
    assert waits == [5.0]


def test_what_was_killed_between_two_writes_is_made_up_for(follower, tmp_path):
    """The event of step 4 was not written, and the line of step 6 only in part."""
    trainer_in(tmp_path).train(DATA, 6)
    follower()
    path = tmp_path / "eval/metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    for file in (tmp_path / "eval").glob("*tfevents*"):
        file.unlink()
    record = EvaluationRecord(tmp_path / "eval")
    assert sorted(record.steps) == [2, 4] and records(tmp_path) == {2: 2.0, 4: 4.0}
    assert follower() == ([6], {"w": 6.0})
    assert records(tmp_path) == {2: 2.0, 4: 4.0, 6: 6.0}


def test_a_step_with_other_weights_is_evaluated_again(follower, tmp_path):
    trainer_in(tmp_path).train(DATA, 6)
    follower()
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    for step in directory.steps():
        directory.delete(step)
    trainer = trainer_in(tmp_path)
    trainer.model.w.assign(100.0)  # another initial value
    trainer.train(DATA, 4)
    assert follower() == ([2, 4], {"w": 104.0})
    assert records(tmp_path) == {2: 102.0, 4: 104.0}


def test_corrupt_and_deleted_checkpoints_are_passed_over(follower, tmp_path, caplog):
    trainer_in(tmp_path).train(DATA, 8)
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    (directory.at(2) / "variables.index").write_bytes(b"")
    (directory.at(4) / "manifest.json").unlink()

    def delete():
        directory.delete(6)
        return {}

    logging.getLogger("tfloss").addHandler(caplog.handler)
    assert follower(delete, newest_first=True) == ([8], {"w": 8.0})
    logging.getLogger("tfloss").removeHandler(caplog.handler)
    text = caplog.text
    assert text.count("step_00000002 is not evaluated: variables.index has 0 bytes") == 1
    assert text.count("step_00000004 is not evaluated: manifest.json is missing") == 1
    assert records(tmp_path) == {8: 8.0}


def test_a_model_that_does_not_fit_is_an_error(tmp_path):
    trainer_in(tmp_path).train(DATA, 2)
    other = keras.Sequential([keras.layers.Dense(1)])
    trainer = tfloss.Trainer(
        tfloss.adapters.supervised(other, keras.losses.MeanSquaredError()),
        keras.optimizers.SGD(),
        workdir=tmp_path,
    )
    pairs = tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1, 1])))
    with pytest.raises(CheckpointError, match="doesn't match"):
        follow(trainer, pairs, dict)


def test_two_processes_do_not_evaluate_one_run(follower, tmp_path):
    trainer_in(tmp_path).train(DATA, 2)

    def second():
        with pytest.raises(WorkdirInUseError):
            follower()
        return {}

    assert follower(second)[0] == [2]


def test_beside_a_trainer_that_deletes(tmp_path):
    """The trainer keeps one checkpoint. Every one that is evaluated has the weights of its step."""
    save = tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=1), keep_last=1)
    trainer = tfloss.Trainer(
        Count(), keras.optimizers.SGD(1.0), workdir=tmp_path, hooks=[save], jit=False
    )
    thread = threading.Thread(target=lambda: trainer.train(DATA, 100))
    thread.start()
    evaluator = trainer_in(tmp_path)
    found = follow(
        evaluator,
        DATA,
        lambda: {"w": float(evaluator.model.w)},
        wait=lambda seconds: thread.join(0.01),
    )
    thread.join()
    assert found == {"w": 100.0}
    assert all(step == value for step, value in records(tmp_path).items())
