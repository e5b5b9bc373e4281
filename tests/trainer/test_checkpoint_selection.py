"""`Trainer.restore` of a selected checkpoint, what training does after it, and no optimizer."""

import itertools
import json
import os
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Accuracy, Line
from tests.trainer.test_run_checkpoint import Saw, numbers
from tfloss.checkpoint import CheckpointDirectory
from tfloss.errors import CheckpointDeletedError, CheckpointError, WorkerError
from tfloss.hooks import Evaluate, Every, ExportBest, Hook, SaveCheckpoint
from tfloss.trainer.checkpoint_selection import selected_checkpoint

TEST = tf.data.Dataset.from_tensors({"x": tf.constant([1.0, 3.0])})
PREDICTED = {"y": tfloss.metric(keras.metrics.Mean(), lambda batch, predictions: predictions["y"])}


def make(workdir, **options):
    options = {"log_every": 1, "jit": False, "seed": 0, **options}
    return tfloss.Trainer(Line(), keras.optimizers.SGD(0.01), workdir=workdir, **options)


class Given(Accuracy):
    """Results that are known before: the best one comes second."""

    def __init__(self):
        self.results = itertools.cycle([0.5, 0.9, 0.7, 0.6, 0.95])

    def result(self):
        return next(self.results)


def hooks(*more):
    evaluate = Evaluate(TEST, {"accuracy": Given()}, every=Every(steps=2))
    return [evaluate, *more, Saw(), SaveCheckpoint(Every(steps=2), keep_last=None)]


def lines(workdir, name="metrics.jsonl"):
    found = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    time = ("time", "steps_per_second", "examples_per_second", "input/wait_fraction")
    return [{k: v for k, v in x.items() if not k.startswith(time)} for x in found]


def test_a_step_the_best_or_the_newest(tmp_path):
    trainer = make(tmp_path, hooks=hooks())
    weights = {}

    class Keep(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            weights[step] = self.trainer.model.w.numpy()

    trainer.train(numbers(), 8, hooks=[Keep()])
    for wanted, step in (({"step": 6}, 6), ({"best": "val/accuracy"}, 4), ({}, 8)):
        for again in (trainer, make(tmp_path)):  # the process that trained, and another one
            assert again.restore(numbers(), **wanted) == again.step == step
            assert again.model.w.numpy() == weights[step]
    assert trainer.restore(numbers(), best="losses/total") in (2, 4, 6, 8)


@pytest.mark.parametrize(("jit", "same_process"), [(False, True), ("loop", False)])
def test_training_after_an_older_step_repeats_the_run(tmp_path, same_process, jit):
    """The data, hooks and logs continue from that step, and nothing of the first run is deleted."""
    trainer = make(tmp_path, hooks=hooks(), jit=jit)
    data = numbers()
    trainer.train(data, 8)
    first, saw = lines(tmp_path), trainer.hooks[1].seen
    end = trainer.model.w.numpy()
    if not same_process:
        trainer = make(tmp_path, hooks=hooks(), jit=jit)
    trainer.restore(data, step=4)
    trainer.train(data, 4)  # nothing to do, so nothing is moved
    assert trainer.checkpoints.steps() == [2, 4, 6, 8] and lines(tmp_path) == first
    trainer.train(data, 8)
    assert trainer.model.w.numpy() == end
    assert trainer.hooks[1].seen[-4:] == saw[4:8]
    assert len(lines(tmp_path)) == len(first) == 12
    names = [{k: v for k, v in x.items() if "accuracy" not in k} for x in lines(tmp_path)]
    assert names == [{k: v for k, v in x.items() if "accuracy" not in k} for x in first]
    assert lines(tmp_path, "superseded.metrics.jsonl") == first
    assert [p.name for p in (tmp_path / "train").glob("superseded.*")]
    assert trainer.checkpoints.steps() == [2, 4, 6, 8]
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("superseded_*"))
    assert kept == ["superseded_00000006", "superseded_00000008"]
    fresh = Line()
    fresh.built = True
    tfloss.load_weights(fresh, tmp_path / "checkpoints" / kept[1])
    assert fresh.w.numpy() == end


def test_a_kill_after_going_back_resumes_from_there(tmp_path, messages):
    """And not from the later checkpoints; those that are saved then are not deleted as old."""
    trainer = make(tmp_path, hooks=[SaveCheckpoint(Every(steps=2), keep_last=2)])
    trainer.train(numbers(), 10)
    assert trainer.checkpoints.steps() == [8, 10]
    again = make(tmp_path, hooks=[SaveCheckpoint(Every(steps=1), keep_last=2)])
    again.restore(numbers(), step=8)
    again.train(numbers(), 9)
    assert again.checkpoints.steps() == [8, 9]
    (said,) = [one for one in messages if "training continues from step 8" in one]
    assert "superseded_00000010" in said and "superseded.*" in said
    third = make(tmp_path)
    assert third.restore(numbers()) == 9
    third.train(numbers(), 10)
    assert len([one for one in messages if "renamed" in one]) == 1  # an ordinary resume moves none


def test_a_failure_before_the_first_step_leaves_the_checkpoints(tmp_path):
    trainer = make(tmp_path, hooks=hooks())
    trainer.train(numbers(), 6)

    class Fails(Hook):
        def before_train(self):
            raise RuntimeError("mine")

    trainer.restore(numbers(), step=2)
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train(numbers(), 8, hooks=[Fails()])
    assert trainer.checkpoints.steps() == [2, 4, 6]
    trainer.train(numbers(), 3)
    assert trainer.checkpoints.steps() == [2, 3]


def test_a_later_export_is_kept(tmp_path):
    best = ExportBest("val/accuracy")
    trainer = make(tmp_path, hooks=hooks(best))
    trainer.train(numbers(), 10)  # exported at 2, 4 and, by the last evaluation, 10
    exported = json.loads((tmp_path / "export.best.json").read_text())
    assert exported["step"] == 10
    again = make(tmp_path, hooks=hooks(ExportBest("val/accuracy")))
    again.restore(numbers(), step=2)
    again.train(numbers(), 6)
    assert json.loads((tmp_path / "superseded.export.best.json").read_text()) == exported
    assert (tmp_path / "superseded.export" / "best.weights.h5").exists()
    assert json.loads((tmp_path / "export.best.json").read_text())["step"] == 6


def test_values_that_were_logged_stay_with_a_checkpoint_that_is_saved_again(tmp_path):
    trainer = make(tmp_path, hooks=hooks())
    trainer.train(numbers(), 4)
    again = make(tmp_path)
    again.restore(numbers(), step=4)
    again.save_checkpoint()
    again.train(numbers(), 5)
    third = make(tmp_path)
    assert third.restore(numbers(), best="val/accuracy") == 4


def test_wrong_names_are_reported_before_the_model_is_built(tmp_path):
    trainer = make(tmp_path, hooks=hooks())
    trainer.train(numbers(), 4)
    again = make(tmp_path)
    for wanted, message in (
        ({"step": 3}, "There are checkpoints of: 2, 4"),
        ({"best": "val/acuracy"}, "Did you mean 'val/accuracy'"),
        ({"step": 2, "best": "val/accuracy"}, "give one"),
    ):
        with pytest.raises(ValueError, match=message):
            again.restore(None, **wanted)
    with pytest.raises(CheckpointError, match="no workdir"):
        make(None).restore(None, step=3)
    with pytest.raises(CheckpointError, match="no checkpoint in .*nothing"):
        make(tmp_path / "nothing").restore(None, step=3)


def test_all_workers_fail_if_the_first_one_finds_nothing(tmp_path):
    class Other:
        """The agreement of a second worker, whose chief has failed."""

        chief, workers = False, 2

        def run_on_all(self, description, function):
            assert function() == -1  # it reads no files
            raise WorkerError(description)

    with pytest.raises(WorkerError, match="find a checkpoint"):
        selected_checkpoint(tfloss.checkpoint.CheckpointDirectory(tmp_path), Other(), None, step=3)


def test_all_workers_know_that_a_checkpoint_was_deleted(tmp_path):
    """Then they may all go on with another one. One that is lost would leave the others waiting."""

    sent = []

    class Worker:
        """The chief's numbers reach the second worker."""

        workers = 2

        def __init__(self, chief):
            self.chief = chief

        def run_on_all(self, description, function):
            return function()

        def agree(self, flags, numbers, place):
            sent.extend(numbers if self.chief else [])
            return list(flags), list(sent)

    files = CheckpointDirectory(tmp_path)
    files.save(1, {"w": tf.Variable(1.0)})
    for chief in (True, False):
        with pytest.raises(CheckpointDeletedError, match="no checkpoint of"):
            selected_checkpoint(files, Worker(chief), None, step=3)


@pytest.mark.parametrize("chief", [True, False])
def test_a_checkpoint_that_is_deleted_after_the_choice_is_deleted_for_all(tmp_path, chief):
    """Nobody waits for it: there is a later one."""
    files = CheckpointDirectory(tmp_path)
    for step in (1, 2):
        files.save(step, {"w": tf.Variable(1.0)})

    class Worker:
        """The first worker chooses the checkpoint of step 1, and a trainer deletes it then."""

        workers, chief = 2, False

        def run_on_all(self, description, function):
            return function()

        def agree(self, flags, numbers, place):
            if numbers:
                files.delete(1)
                return [], [1]
            return [True], []  # what the first worker says, or both

        def require_equal(self, *_):
            raise AssertionError

    Worker.chief = chief
    began = time.monotonic()
    with pytest.raises(CheckpointDeletedError, match="of step 1 in .* was deleted meanwhile"):
        selected_checkpoint(files, Worker(), None, step=1)
    assert time.monotonic() - began < 5


# Without an optimizer


def only_evaluates(workdir, model=None, **options):
    return tfloss.Trainer(model or Line(), workdir=workdir, jit=False, **options)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_evaluation_needs_neither_the_optimizer_nor_the_options_of_training(
    tmp_path, ema, messages
):
    options = {"ema": ema, "precision": "mixed_float16", "skip_nonfinite": True, "clip_norm": 1.0}
    trainer = make(tmp_path, hooks=hooks(), **options)
    trainer.train(numbers(), 6)
    expected = trainer.evaluate(TEST, PREDICTED)
    one = only_evaluates(tmp_path)
    assert one.optimizer is None
    assert one.restore(TEST) == 6
    assert one.evaluate(TEST, PREDICTED) == pytest.approx(expected, rel=1e-3)  # float32 now
    assert one.evaluate(TEST, losses=True)["losses/mean"] == pytest.approx(expected["y"], rel=1e-3)
    assert "without an optimizer" in messages[-1] and "left out (loss_scale, optimi" in messages[-1]
    assert ("evaluate(..., ema=True)" in messages[-1]) == bool(ema)
    if ema is None:
        with pytest.raises(ValueError, match="no averages"):
            one.evaluate(TEST, PREDICTED, ema=True)
        return
    averaged = trainer.evaluate(TEST, PREDICTED, ema=True)
    assert averaged["y"] != expected["y"]
    assert one.evaluate(TEST, PREDICTED, ema=True) == pytest.approx(averaged, rel=1e-3)
    assert one.restore(TEST, best="val/accuracy") == 4
    with one.averaged():
        inside = one.model.w.numpy()
    assert inside != one.model.w.numpy()


class TwoParts(keras.Model):
    """Two groups, statistics, a frozen layer, and Dropout."""

    def __init__(self):
        super().__init__(name="two")
        self.trunk = keras.layers.Dense(3, name="trunk")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.frozen = keras.layers.Dense(3, name="frozen", trainable=False)
        self.drop = keras.layers.Dropout(0.5, name="drop")
        self.head = keras.layers.Dense(1, name="head")

    def call(self, batch, training=False):
        x = self.norm(self.trunk(batch["x"][:, None]), training=training)
        y = self.head(self.drop(self.frozen(x), training=training))[:, 0]
        return {"mean": tf.reduce_mean(y**2)} if training else {"y": y}


@pytest.mark.parametrize(("count", "trainable_only"), [(1, False), (2, True)])
def test_groups_statistics_and_frozen_parts_on_replicas(
    tmp_path, replicas, count, trainable_only, recwarn
):
    strategy = replicas(2)
    with strategy.scope():
        model = TwoParts()
        groups = {
            "trunk": (keras.optimizers.Adam(0.1), [model.trunk, model.norm]),
            "head": (keras.optimizers.SGD(0.1), model.head),
        }
        ema = tfloss.Ema(0.5, trainable_only=trainable_only)
        trainer = tfloss.Trainer(model, groups, workdir=tmp_path, jit=False, ema=ema)
    trainer.train(numbers(), 5)
    keras.utils.clear_session(free_memory=False)
    strategy = replicas(count)
    with strategy.scope():
        one = only_evaluates(tmp_path, TwoParts())
    assert one.restore(TEST) == 5
    assert not [one for one in recwarn if "No optimizer group" in str(one.message)]
    for average in (False, True):
        wanted = trainer.evaluate(TEST, PREDICTED, ema=average)
        found = one.evaluate(TEST, PREDICTED, ema=average)
        assert found == pytest.approx(wanted, rel=1e-5)
    averages = [name for name in one.train_step.averages.variables() if "moving" in name]
    assert len(averages) == (0 if trainable_only else 2)


def test_a_model_that_differs_is_refused_all_the_same(tmp_path):
    make(tmp_path, hooks=hooks()).train(numbers(), 2)
    model = Line()
    model.more = keras.layers.Dense(1, name="more")
    model.more.build((None, 1))
    with pytest.raises(CheckpointError, match="not in the checkpoint: model/more/kernel"):
        only_evaluates(tmp_path, model).restore(TEST)


def test_ema_for_a_run_without_averages_is_refused(tmp_path):
    make(tmp_path, hooks=hooks()).train(numbers(), 2)
    with pytest.raises(CheckpointError, match=r"no moving averages .* Leave ema= out"):
        only_evaluates(tmp_path, ema=0.9).restore(TEST)


def test_training_and_saving_are_refused_by_name(tmp_path):
    make(tmp_path, hooks=hooks()).train(numbers(), 2)
    before = sorted(tmp_path.rglob("*"))
    one = only_evaluates(tmp_path)
    with pytest.raises(ValueError, match="no optimizer, so it can't train. Give it one"):
        one.train(numbers(), 3)
    one.restore(numbers())
    with pytest.raises(ValueError, match="Trainer without an optimizer saves no checkpoints"):
        one.save_checkpoint()
    assert sorted(tmp_path.rglob("*")) == before
    step = tfloss.TrainStep(Line(), None)
    step.build({"x": tf.TensorSpec([2])})
    with pytest.raises(tfloss.errors.ModelError, match="minimize.. needs an optimizer"):
        step({"x": tf.zeros([2])})


def test_a_workdir_is_only_read(tmp_path, monkeypatch):
    make(tmp_path / "run", hooks=hooks()).train(numbers(), 2)

    def refuse(path):
        raise AssertionError(path)

    monkeypatch.setattr("tfloss.trainer.workdir.writable", refuse)
    one = only_evaluates(tmp_path / "run")
    assert one.restore(TEST) == 2 and one.workdir == (tmp_path / "run").absolute()
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere"):
        only_evaluates(tmp_path / "nowhere").restore(TEST)
    assert os.listdir(tmp_path) == ["run"]


def test_a_subclass_with_a_variable_of_its_own(tmp_path):
    class Counting(tfloss.TrainStep):
        def __init__(self, model, optimizer, **options):
            super().__init__(model, optimizer, **options)
            self.seen = tf.Variable(0.0)

        def extra_variables(self):
            return {**super().extra_variables(), "seen": self.seen}

    trainer = make(tmp_path, hooks=hooks(), train_step=Counting)
    trainer.train(numbers(), 2)
    trainer.train_step.seen.assign(7.0)
    trainer.save_checkpoint()
    one = only_evaluates(tmp_path, train_step=Counting)
    one.restore(TEST)
    assert one.train_step.seen.numpy() == 7.0
    plain = only_evaluates(tmp_path)
    plain.restore(TEST)
    np.testing.assert_array_equal(plain.model.w.numpy(), trainer.model.w.numpy())


@pytest.mark.parametrize("best", [None, "val/accuracy"])
def test_the_next_one_is_restored_if_it_was_deleted_meanwhile(tmp_path, monkeypatch, best):
    """It is deleted while the model is built. A step that was given is not replaced by another."""
    make(tmp_path, hooks=hooks()).train(numbers(), 8)
    trainer = make(tmp_path)
    restore = CheckpointDirectory.restore
    delete = [4 if best else 8]

    def restore_late(self, path, *arguments, **options):
        if delete:
            self.delete(delete.pop())
        return restore(self, path, *arguments, **options)

    monkeypatch.setattr(CheckpointDirectory, "restore", restore_late)
    found = trainer.restore(numbers(), best=best)
    assert found == trainer.step == 6
    before = trainer.model.w.numpy()
    delete.append(2)
    with pytest.raises(CheckpointDeletedError, match="step_00000002 was deleted"):
        trainer.restore(numbers(), step=2)
    with pytest.raises(CheckpointDeletedError, match="no checkpoint of step 2"):
        trainer.restore(numbers(), step=2)
    assert (trainer.step, trainer.model.w.numpy()) == (6, before)
