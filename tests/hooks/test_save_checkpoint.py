import concurrent.futures
import json
import warnings

import pytest
import tensorflow as tf

from tests.toys import NO_DATA, Accuracy
from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory, manifest
from tfloss.errors import CheckpointWriteError, DataError, NonFiniteLossError, Preempted
from tfloss.hooks import EarlyStopping, Evaluate, Every, SaveCheckpoint


def trainer_of(make_trainer, tmp_path, hook, values=(), evaluate_every=1):
    results = {step: {"accuracy": value} for step, value in enumerate(values, 1)}
    evaluate = (
        [Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=evaluate_every))]
        if values
        else []
    )
    return make_trainer([*evaluate, hook], workdir=tmp_path, results=results)


def test_it_saves_when_due_and_at_the_end(make_trainer, tmp_path):
    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(every=Every(steps=2)))
    trainer.train(5)
    assert trainer.saves == [2, 4, 5]


def test_the_end_is_not_saved_twice(make_trainer, tmp_path):
    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(Every(steps=2)))
    trainer.train(4)
    assert trainer.saves == [2, 4]
    trainer.train(4)  # already there
    assert trainer.saves == [2, 4]
    trainer.train(5)
    assert trainer.saves == [2, 4, 5]


@pytest.mark.parametrize(
    ("error", "saves"),
    [
        (NonFiniteLossError(5, {"total": float("nan")}), [2, 4]),
        (RuntimeError("a bug"), [2, 4]),
        (DataError("the data ended after 3 batches"), [2, 4, 5]),
        (KeyboardInterrupt(), [2, 4, 5]),
    ],
)
def test_a_failed_run_keeps_its_last_good_checkpoint(make_trainer, tmp_path, error, saves):
    def fail(step):
        if step == 6:
            raise error

    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(Every(steps=2)))
    trainer.on_step = fail
    trainer.train(9)
    assert trainer.saves == saves


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [7]), (3, [5, 6, 7]), (None, [*range(1, 8)])])
def test_the_last_few_are_kept(make_trainer, tmp_path, keep_last, kept):
    hook = SaveCheckpoint(Every(steps=1), keep_last=keep_last)
    trainer = trainer_of(make_trainer, tmp_path, hook)
    trainer.train(7)
    assert trainer.checkpoints.steps() == kept


@pytest.mark.parametrize(
    ("mode", "values", "kept", "best"),
    [
        ("max", [0.5, 0.9, 0.1, 0.8, 0.2, 0.3], [2, 4, 6], [[0.9, 2], [0.8, 4]]),
        ("min", [0.5, 0.9, 0.1, 0.8, 0.2, 0.3], [3, 5, 6], [[0.1, 3], [0.2, 5]]),
        # of equal ones the earlier stays, and NaN is never among the best
        ("max", [0.5, 0.5, 0.5, float("nan"), 0.1, 0.1], [1, 2, 6], [[0.5, 1], [0.5, 2]]),
    ],
)
def test_the_best_are_kept_besides_the_last(make_trainer, tmp_path, mode, values, kept, best):
    hook = SaveCheckpoint(
        Every(steps=1), keep_last=1, keep_best=2, metric="val/accuracy", mode=mode
    )
    trainer = trainer_of(make_trainer, tmp_path, hook, values)
    trainer.train(6)
    assert trainer.checkpoints.steps() == kept
    assert hook.state["best"] == best
    # The newest checkpoint knows the ranking with itself in it.
    assert trainer.checkpoints.saved[6][1] == hook.state


def test_a_resumed_run_keeps_the_best_of_all_runs(make_trainer, tmp_path):
    values = [0.5, 0.9, 0.1, 0.3, 0.95, 0.3]
    make = lambda: SaveCheckpoint(  # noqa: E731
        Every(steps=1), keep_last=1, keep_best=1, metric="val/accuracy"
    )
    first = trainer_of(make_trainer, tmp_path, make(), values)
    first.train(3)
    assert first.checkpoints.steps() == [2, 3]
    second = trainer_of(make_trainer, tmp_path, make(), values)
    second.checkpoints = first.checkpoints
    second.restore(3, json.loads(json.dumps(first.checkpoints.saved[3])))
    second.train(4)
    assert second.checkpoints.steps() == [2, 4]
    second.train(6)
    assert second.checkpoints.steps() == [5, 6]


def test_a_best_checkpoint_that_was_deleted_is_replaced_in_the_ranking(make_trainer, tmp_path):
    hook = SaveCheckpoint(Every(steps=1), keep_last=1, keep_best=1, metric="val/accuracy")
    trainer = trainer_of(make_trainer, tmp_path, hook, [0.9, 0.1, 0.5, 0.2])
    trainer.train(2)
    trainer.checkpoints.delete(1)
    trainer.train(4)
    assert trainer.checkpoints.steps() == [3, 4]


def test_the_last_checkpoint_holds_a_final_evaluation_by_a_later_hook(make_trainer, tmp_path):
    evaluate = Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=3))
    stopping = EarlyStopping("val/accuracy", patience=9)
    save = SaveCheckpoint(Every(steps=2), keep_best=1, metric="val/accuracy")
    results = {3: {"accuracy": 0.5}, 4: {"accuracy": 0.75}}
    trainer = make_trainer([evaluate, stopping, save], workdir=tmp_path, results=results)
    trainer.train(4)  # saved at 2; then the end evaluates step 4, and saves it
    assert trainer.saves == [2, 4]
    assert trainer.checkpoints.saved[4] == [
        {"step": 4},
        {"metric": "val/accuracy", "mode": "max", "best": 0.75, "step": 4, "count": 0},
        {"metric": "val/accuracy", "mode": "max", "best": [[0.75, 4]]},
    ]


def test_a_warning_tells_if_no_checkpoint_has_the_metric(make_trainer, tmp_path):
    hook = SaveCheckpoint(Every(steps=2), keep_best=1, metric="val/accuracy")
    results = {3: {"accuracy": 0.5}}
    evaluate = Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=3))

    class Fails(Exception):
        pass

    def fail(step):
        if step == 6:
            raise Fails

    trainer = make_trainer([evaluate, hook], workdir=tmp_path, results=results, on_step=fail)
    with pytest.warns(UserWarning, match="kept nothing: no checkpoint was saved at a step where"):
        trainer.train(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "at least 1, or None for all"),
        ({"keep_best": -1}, "at least 0"),
        ({"keep_best": 1}, "keep_best and metric must be given together"),
        ({"metric": "val/accuracy"}, "keep_best and metric must be given together"),
        ({"keep_best": 1, "metric": "a", "mode": "best"}, "'max' or 'min'"),
        ({"keep_every": 0}, "at least 1"),
        ({"on_error": "ignore"}, "'stop' or 'continue'"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaveCheckpoint(**options)


def test_it_needs_a_workdir(make_trainer):
    with pytest.raises(ValueError, match="Give the Trainer a workdir"):
        make_trainer([SaveCheckpoint()], checkpoints=None).begin(1)


def test_multiples_of_keep_every_are_never_deleted(make_trainer, tmp_path):
    hook = SaveCheckpoint(Every(steps=2), keep_last=1, keep_every=6)
    trainer = trainer_of(make_trainer, tmp_path, hook)
    trainer.train(16)
    assert trainer.checkpoints.steps() == [6, 12, 16]


@pytest.mark.parametrize("other", [("val/losses/total", "min"), ("val/accuracy", "min")])
def test_another_metric_or_direction_starts_another_ranking(make_trainer, tmp_path, other):
    hook = SaveCheckpoint(Every(steps=1), keep_last=1, keep_best=1, metric="val/accuracy")
    trainer = trainer_of(make_trainer, tmp_path, hook, [0.5, 0.25])
    trainer.checkpoints.saved[9] = []
    hook.state = {"best": [[400.0, 9]], **dict(zip(("metric", "mode"), other, strict=True))}
    trainer.train(2)
    assert hook.state == {"best": [[0.5, 1]], "metric": "val/accuracy", "mode": "max"}
    assert trainer.checkpoints.steps() == [1, 9]  # 9 is newer than 2


# With files


@pytest.fixture(params=["at once", "background"])
def make_run(request, make_trainer, tmp_path):
    """`make_run(hook, values)`: a trainer that saves real checkpoints, at once or not."""

    class Run(make_trainer):
        writer = BackgroundWriter() if request.param == "background" else None

        def save_checkpoint(self):
            self.saves.append(self.step)
            extra = {"hooks": {"SaveCheckpoint": self.hooks[-1].state}}
            return self.agreement.run_on_all(
                "save a checkpoint",
                lambda: self.checkpoints.save(
                    self.step, {"v": tf.Variable(self.step)}, extra, background=self.writer
                ),
            )

    def make(hook, values=(), **options):
        directory = CheckpointDirectory(tmp_path / "c")
        results = {step: {"accuracy": value} for step, value in enumerate(values, 1)}
        evaluate = (
            [Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=1))] if values else []
        )
        hooks = [*evaluate, hook]
        trainer = Run(hooks, workdir=tmp_path, results=results, checkpoints=directory, **options)
        on_step = trainer.on_step

        def after_the_write(step):
            if trainer.writer is not None and trainer.writer._write is not None:
                concurrent.futures.wait([trainer.writer._write])
            on_step(step)

        trainer.on_step = after_the_write
        return trainer

    return make


class Disk:
    """Takes nothing between two steps: a file lies where the directory was."""

    def __init__(self, path, fails, works=99):
        self.path, self.aside, self.fails, self.works = path, path.with_name("aside"), fails, works

    def __call__(self, step):
        if step == self.fails:
            self.path.rename(self.aside)
            self.path.write_text("")
        if step == self.works:
            self.path.unlink()
            self.aside.rename(self.path)


def test_last_and_best_are_kept_and_everything_is_written_at_the_end(make_run):
    values = [0.5, 0.9, 0.1, 0.8, 0.2, 0.3]
    hook = SaveCheckpoint(Every(steps=1), keep_last=2, keep_best=1, metric="val/accuracy")
    trainer = make_run(hook, values)
    trainer.train(6)
    assert trainer.checkpoints.steps() == trainer.checkpoints.valid_steps() == [2, 5, 6]
    extra = trainer.checkpoints.restore(trainer.checkpoints.at(6), {"v": tf.Variable(0)})
    assert extra["hooks"]["SaveCheckpoint"] == hook.state
    assert hook.state == {"metric": "val/accuracy", "mode": "max", "best": [[0.9, 2]]}


def test_corrupt_checkpoints_do_not_count_and_are_not_deleted(make_run, tmp_path):
    first = CheckpointDirectory(tmp_path / "c")
    for step in (1, 2, 3):
        first.save(step, {"v": tf.Variable(step)})
    for step in (1, 3):
        (first.at(step) / "variables.index").write_bytes(b"")
    trainer = make_run(SaveCheckpoint(Every(steps=1), keep_last=2), step=3)
    trainer.train(4)
    assert trainer.checkpoints.steps() == [1, 2, 3, 4]
    trainer.train(6)
    assert trainer.checkpoints.steps() == [1, 3, 5, 6]


def test_a_resumed_run_reads_no_kept_checkpoint_to_delete_the_oldest(
    make_run, tmp_path, monkeypatch
):
    first = CheckpointDirectory(tmp_path / "c")
    for step in (1, 2, 3):
        first.save(step, {"v": tf.Variable(step)})
    read = []
    original = manifest.file_checksum
    monkeypatch.setattr(manifest, "file_checksum", lambda path: read.append(path) or original(path))
    hook = SaveCheckpoint(Every(steps=1), keep_last=3, keep_best=1, metric="val/accuracy")
    trainer = make_run(hook, [0.5] * 4, step=3)
    trainer.train(4)
    assert trainer.checkpoints.steps() == [2, 3, 4]
    assert {path.parent.name for path in read} == {"step_00000004"}  # the one that was written


def test_a_full_disk_stops_training(make_run, tmp_path):
    trainer = make_run(SaveCheckpoint(Every(steps=2)), on_step=Disk(tmp_path / "c", 3))
    trainer.train(9)
    assert isinstance(trainer.error, CheckpointWriteError)
    assert f"{tmp_path}/c/step_00000004 can't be written: File exists" in str(trainer.error)
    # In the background it is found out when the next one is due.
    assert trainer.step == (4 if trainer.writer is None else 6)
    assert trainer.saves == [2, 4]
    assert CheckpointDirectory(tmp_path / "aside").valid_steps() == [2]


def test_training_may_continue_and_save_when_the_disk_has_space_again(make_run, tmp_path):
    values = [0.1, 0.9, 0.3, 0.95, 0.2, 0.1, 0.1, 0.1]
    hook = SaveCheckpoint(
        Every(steps=2), keep_last=1, keep_best=1, metric="val/accuracy", on_error="continue"
    )
    trainer = make_run(hook, values, on_step=Disk(tmp_path / "c", 3, works=5))
    with pytest.warns(UserWarning, match="0004 can't be written: .* Training continues") as warned:
        trainer.train(8)
    assert len(warned) == 1 and trainer.error is None and trainer.saves == [2, 4, 6, 8]
    # 4 was better, but isn't there: 2 stays the best.
    assert hook.state["best"] == [[0.9, 2]]
    assert trainer.checkpoints.valid_steps() == [2, 8]


def test_the_end_warns_if_the_last_checkpoint_is_missing(make_run, tmp_path):
    hook = SaveCheckpoint(Every(steps=2), on_error="continue")
    trainer = make_run(hook, on_step=Disk(tmp_path / "c", 3))
    with pytest.warns(UserWarning) as warned:
        trainer.train(5)
    messages = [str(one.message) for one in warned]
    assert trainer.error is None
    assert messages[-1].startswith("Training ended without a checkpoint of step 5. The checkpoint ")
    # In the background the one before is found out at the end too, when it no longer matters.
    assert len(messages) == (2 if trainer.writer is None else 1)


def test_the_end_raises_the_error_if_on_error_is_stop(make_run, tmp_path):
    trainer = make_run(SaveCheckpoint(), on_step=Disk(tmp_path / "c", 1))
    trainer.checkpoints.path.mkdir()
    with pytest.raises(CheckpointWriteError, match="step_00000002 can't be written"):
        trainer.train(2)


def test_a_failed_write_does_not_hide_the_error_that_ended_training(make_run, tmp_path):
    def on_step(step):
        disk(step)
        if step == 3:
            raise Preempted

    disk = Disk(tmp_path / "c", 2)
    trainer = make_run(SaveCheckpoint(), on_step=on_step)
    trainer.checkpoints.path.mkdir()
    with pytest.warns(UserWarning, match="ended without a checkpoint of step 2"):
        trainer.train(9)
    assert isinstance(trainer.error, Preempted)


def test_after_another_error_the_current_write_is_finished(make_run, tmp_path):
    def fail(step):
        if step == 4:
            raise RuntimeError("a bug")

    trainer = make_run(SaveCheckpoint(Every(steps=3)), on_step=fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(9)
    assert trainer.checkpoints.valid_steps() == [3]
