import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tests.toys import NO_DATA
from tfloss.hooks import Evaluate, RunInfo, TensorBoard
from tfloss.hooks.event_log import EventLog
from tfloss.hooks.run_description import DESCRIPTION_TAGS
from tfloss.summary import Summary


def read(logdir):
    events = EventAccumulator(str(logdir), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(events, tag):
    return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]


def tensors(events, tag):
    return [(e.step, tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]


def plugin(events, tag):
    return events.SummaryMetadata(tag).plugin_data.plugin_name


def test_scalars_keep_their_tags_steps_and_values(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(20)
    with tf.name_scope("outer"), tf.summary.record_if(False):
        trainer.log(10, {"losses/total": 0.5, "rpn/é": 2.0})
    trainer.log(20, {"losses/total": 0.25, "val/losses/total": 4.0})
    trainer.end()
    events = read(tmp_path / "train")
    texts = ["_hparams_/session_start_info", "recipe", "command", "inspect"]
    assert events.Tags()["tensors"] == [*texts, "Losses/total", "rpn/é", "val/losses/total"]
    assert scalars(events, "Losses/total") == [(10, 0.5), (20, 0.25)]
    assert scalars(events, "rpn/é") == [(10, 2.0)]
    assert scalars(events, "val/losses/total") == [(20, 4.0)]
    assert plugin(events, "Losses/total") == "scalars"


def test_values_that_are_not_finite_are_written(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard(tmp_path)])
    trainer.begin(1)
    trainer.log(1, {"a": float("nan"), "b": float("inf")})
    trainer.end()
    events = read(tmp_path)
    assert np.isnan(scalars(events, "Metrics/a")[0][1])
    assert scalars(events, "Metrics/b") == [(1, float("inf"))]


def test_summaries_of_each_kind(make_trainer, tmp_path):
    images = np.zeros([5, 2, 3, 1], np.float32)
    images[4] = 1.0
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="mine")
    )
    summaries = [
        Summary("h", "histogram", np.array([[0.0, 1.0], [1.0, 4.0]]), {"buckets": 4}),
        Summary("h30", "histogram", np.arange(10.0), {"buckets": None}),
        Summary("i", "image", images, {}),
        Summary("t", "text", np.array([b"one", b"two"], object), {}),
        Summary("r", "raw", np.array([1, 2, 3]), {"metadata": metadata}),
    ]
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(7)
    trainer.log(7, {}, summaries)
    trainer.end()
    events = read(tmp_path / "train")
    assert [plugin(events, tag) for tag in ("h", "i", "t", "r")] == [
        "histograms",
        "images",
        "text",
        "mine",
    ]
    ((step, buckets),) = tensors(events, "h")  # rows of left edge, right edge, count
    assert step == 7
    np.testing.assert_array_equal(buckets, [[0, 1, 1], [1, 2, 2], [2, 3, 0], [3, 4, 1]])
    assert tensors(events, "h30")[0][1].shape == (30, 3)
    ((step, encoded),) = tensors(events, "i")  # width, height, then a PNG each
    assert [*encoded[:2], len(encoded) - 2] == [b"3", b"2", 5]
    np.testing.assert_array_equal(tf.io.decode_png(encoded[-1]), np.full([2, 3, 1], 255, np.uint8))
    assert list(tensors(events, "t")[0][1]) == [b"one", b"two"]
    np.testing.assert_array_equal(tensors(events, "r")[0][1], [1, 2, 3])


def test_an_unknown_kind_is_named(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(1)
    with pytest.raises(ValueError, match="Summary 'mesh' has the kind '3d'"):
        trainer.log(1, {}, [Summary("mesh", "3d", np.zeros([1]))])


def test_a_run_that_logs_nothing_leaves_no_file(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.train(3)
    assert list(tmp_path.iterdir()) == []


def test_events_are_in_the_file_after_a_due_call(make_trainer, tmp_path):
    hook = TensorBoard()
    trainer = make_trainer([hook], workdir=tmp_path)
    trainer.begin(20)
    trainer.log(10, {"a": 1.0})
    hook.after_step(11)
    assert scalars(read(tmp_path / "train"), "Metrics/a") == [(10, 1.0)]
    hook.after_step(12)  # nothing new
    trainer.end()


def test_a_run_has_one_file_and_later_hooks_may_log_at_the_end(make_trainer, tmp_path):
    hooks = [TensorBoard(), Evaluate(NO_DATA, {})]
    trainer = make_trainer(hooks, workdir=tmp_path, results={2: {"accuracy": 0.5}})
    trainer.train(2)
    assert scalars(read(tmp_path / "val"), "Metrics/accuracy") == [(2, 0.5)]
    assert len(list((tmp_path / "val").iterdir())) == 1


def test_it_needs_a_path(make_trainer):
    with pytest.raises(
        ValueError, match=r"Give the Trainer a workdir, or use TensorBoard\(logdir\)"
    ):
        make_trainer([TensorBoard()]).begin(1)


def test_a_resumed_run_has_each_point_once(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(30)
    for step in (10, 20, 30):
        trainer.log(step, {"a": float(step)})
        trainer.hooks[0].before_save(step)  # in the file, though the run doesn't end
    (path,) = (tmp_path / "train").iterdir()
    path.write_bytes(path.read_bytes()[:-3])  # killed while it wrote
    again = make_trainer([TensorBoard()], workdir=tmp_path, step=10)
    again.begin(40)
    assert scalars(read(tmp_path / "train"), "Metrics/a") == [(10, 10.0)]
    for step in (20, 30, 40):
        again.log(step, {"a": -float(step)})
    again.end()
    found = sorted(point for file in (tmp_path / "train").iterdir() for point in _points(file))
    assert found == [(10, 10.0), (20, -20.0), (30, -30.0), (40, -40.0)]


def test_a_resumed_run_leaves_other_files_and_damaged_bytes_as_they_are(make_trainer, tmp_path):
    """Files of other programs, a text, a link, and records behind a flipped byte."""
    logdir = tmp_path / "train"
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(30)
    for step in range(1, 31):
        trainer.log(step, {"a": float(step)})
    trainer.end()
    (path,) = logdir.iterdir()
    whole, starts = path.read_bytes(), {}
    damaged, place = bytearray(whole), 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        starts[tf.compat.v1.Event.FromString(record).step] = place
        place += len(record) + 16
    damaged[starts[1] + 4] ^= 0x40  # the length of the event of step 1
    path.write_bytes(damaged)
    (logdir / "notes.tfevents.txt").write_text("mine")
    with tf.summary.create_file_writer(str(logdir / "x")).as_default(step=99):
        tf.summary.scalar("mine", 1.0)
    (other,) = (logdir / "x").iterdir()
    other.rename(logdir / "other.tfevents")
    (tmp_path / "victim").write_bytes(whole)
    (logdir / "link.tfevents").symlink_to(tmp_path / "victim")
    before = {file: file.read_bytes() for file in logdir.iterdir() if file.is_file()}
    make_trainer([TensorBoard()], workdir=tmp_path, step=10).begin(40)
    after = {file: file.read_bytes() for file in logdir.iterdir() if file.is_file()}
    assert before.pop(path) == damaged and after.pop(path) == damaged[: starts[11]]
    assert before == after


def _points(path):
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            if value.tag not in DESCRIPTION_TAGS:
                yield event.step, value.simple_value


def test_a_run_from_step_0_renames_an_older_log(make_trainer, tmp_path):
    for value in (1.0, 2.0):
        trainer = make_trainer([TensorBoard()], workdir=tmp_path)
        trainer.begin(1)
        trainer.log(1, {"a": value})
        trainer.end()
    assert scalars(read(tmp_path / "train"), "Metrics/a") == [(1, 2.0)]
    (old,) = (tmp_path / "train").glob("superseded.*")
    assert list(_points(old)) == [(1, 1.0)]


def test_a_damaged_record_is_kept(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard()], workdir=tmp_path)
    trainer.begin(30)
    for step in (10, 20, 30):
        trainer.log(step, {"a": float(step)})
    trainer.end()
    (path,) = (tmp_path / "train").iterdir()
    data = bytearray(path.read_bytes())
    version = 0
    for _ in ("version", "hyperparameters", "recipe", "command"):
        version += 16 + int.from_bytes(data[version : version + 8], "little")
    size = (len(data) - version) // 3
    damaged = data[version + 12 : version + 12 + 8]
    data[version + 12 : version + 12 + 8] = b"\xff" * len(damaged)  # inside that of step 10
    path.write_bytes(data)
    again = make_trainer([TensorBoard()], workdir=tmp_path, step=20)
    again.begin(40)
    assert path.read_bytes() == bytes(data[: version + 2 * size])


def test_consecutive_steps_are_one_event_each(make_trainer, tmp_path):
    logs = [(step, {"a": 0.5 * step, "b/c": -step}) for step in range(1, 24)]
    logs[4:4] = [(5, {}), (5, {"other": 2.0})]
    hook = TensorBoard(tmp_path)
    make_trainer([hook]).begin(30)
    for step, values in [*logs, (24, {"a": 9.0})]:
        hook.on_log(step, values, ())
    hook.after_train()
    found = read(hook.logdir)
    assert scalars(found, "Metrics/a") == [*((s, 0.5 * s) for s in range(1, 24)), (24, 9.0)]
    assert scalars(found, "b/c") == [(s, -s) for s in range(1, 24)]
    assert scalars(found, "Metrics/other") == [(5, 2.0)]


def test_a_second_train_call_continues_the_log_without_reading_it(
    make_trainer, tmp_path, monkeypatch
):
    hook = TensorBoard(tmp_path)
    trainer = make_trainer([hook])
    trainer.begin(2)
    trainer.log(2, {"a": 1.0})
    trainer.step = 2
    trainer.end()
    read_again = []
    monkeypatch.setattr(
        "tfloss.hooks.log_truncation.truncate_after", lambda *_, keep: read_again.append(1)
    )
    trainer.begin(3)
    assert not read_again  # reading the file of a long run takes long
    trainer.log(3, {"a": 2.0})
    trainer.step = 3
    trainer.end()
    assert scalars(read(tmp_path), "Metrics/a") == [(2, 1.0), (3, 2.0)]
    trainer.step = 1  # restored to another step
    trainer.begin(3)
    assert read_again


def test_a_value_that_is_no_number_fails_where_it_is_logged(make_trainer, tmp_path):
    trainer = make_trainer([TensorBoard(tmp_path)])
    trainer.begin(1)
    with pytest.raises(ValueError, match="could not convert"):
        trainer.log(1, {"a": "high"})
    trainer.end()


def test_logs_after_the_end_are_in_another_file(make_trainer, tmp_path):
    hook = TensorBoard(tmp_path)
    trainer = make_trainer([hook])
    trainer.begin(1)
    trainer.end()
    hook.on_log(1, {"a": 1.0}, [Summary("t", "text", np.array([b"x"], object), {})])
    assert len(list(tmp_path.iterdir())) == 1
    assert scalars(read(tmp_path), "Metrics/a") == [(1, 1.0)]
    assert plugin(read(tmp_path), "t") == "text"


def curves(workdir):
    """`{(run, tag): [(step, value)]}` of all scalars below a directory, in order of the files."""
    found = {}
    for path in sorted(workdir.rglob("events.out.tfevents*")):
        run = path.parent.relative_to(workdir).as_posix()
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    points = found.setdefault((run, value.tag), [])
                    points.append((event.step, round(value.simple_value, 6)))
    return found


LOG = {"losses/total": 2.0, "accuracy": 0.25, "learning_rate": 0.5, "time/hooks_fraction": 0.125}


def test_evaluations_are_runs_with_the_tags_of_training(make_trainer, tmp_path):
    results = {2: {"accuracy": 0.5, "losses/total": 1.0}}
    hooks = [TensorBoard(), *(Evaluate(NO_DATA, {}, name=n, losses=True) for n in ("val", "test"))]
    trainer = make_trainer(hooks, workdir=tmp_path, results=results)
    trainer.begin(2)
    trainer.log(2, LOG)
    trainer.log(2, {"valid": 1.0, "val": 3.0, "other/x": 4.0})
    trainer.step = 2
    trainer.end()
    both = {"Losses/total": [(2, 1.0)], "Metrics/accuracy": [(2, 0.5)]}
    assert curves(tmp_path) == {
        ("train", "Losses/total"): [(2, 2.0)],
        ("train", "Metrics/accuracy"): [(2, 0.25)],
        ("train", "Training/learning_rate"): [(2, 0.5)],
        ("train", "Training/time/hooks_fraction"): [(2, 0.125)],
        ("train", "Metrics/valid"): [(2, 1.0)],
        ("train", "Metrics/val"): [(2, 3.0)],
        ("train", "other/x"): [(2, 4.0)],
        **{(run, tag): points for run in ("val", "test") for tag, points in both.items()},
    }
    assert trainer.logged[-1] == (2, {"test/accuracy": 0.5, "test/losses/total": 1.0})  # as before


def test_a_given_directory_holds_those_of_evaluations(make_trainer, tmp_path):
    hooks = [TensorBoard(tmp_path / "logs"), Evaluate(NO_DATA, {})]
    trainer = make_trainer(hooks, results={1: {"accuracy": 0.5}})
    trainer.begin(1)
    trainer.log(1, {"losses/total": 2.0})
    trainer.step = 1
    trainer.end()
    assert curves(tmp_path / "logs") == {
        (".", "Losses/total"): [(1, 2.0)],
        ("val", "Metrics/accuracy"): [(1, 0.5)],
    }


def _run(make_trainer, workdir, start, stop, kill=False, evaluates=True):
    """Logs each step, and evaluates each second one. A killed run leaves its files open."""
    hooks = [TensorBoard(), *([Evaluate(NO_DATA, {}, losses=True)] if evaluates else [])]
    trainer = make_trainer(hooks, workdir=workdir, step=start)
    trainer.begin(stop)
    for step in range(start + 1, stop + 1):
        trainer.step = step
        trainer.log(step, {"losses/total": float(step), "accuracy": 0.5})
        if evaluates and step % 2 == 0:
            trainer.log(step, {"val/losses/total": 10.0 * step, "val/accuracy": 0.25})
        hooks[0].after_step(step)
    if not kill:
        trainer.hooks = hooks[:1]
        trainer.end()


def test_a_resumed_run_cuts_the_files_of_every_run(make_trainer, tmp_path):
    _run(make_trainer, tmp_path, 0, 7, kill=True)
    _run(make_trainer, tmp_path, 4, 5, kill=True)  # killed twice at one checkpoint
    _run(make_trainer, tmp_path, 4, 8)
    found = curves(tmp_path)
    assert found["train", "Losses/total"] == [(s, float(s)) for s in range(1, 9)]
    assert found["val", "Losses/total"] == [(s, 10.0 * s) for s in (2, 4, 6, 8)]
    texts = [e.step for e in read(tmp_path / "train").Tensors("command")]
    assert texts == [0, 4]


def test_the_curves_of_an_evaluation_that_is_gone_are_cut_too(make_trainer, tmp_path):
    _run(make_trainer, tmp_path, 0, 8)
    _run(make_trainer, tmp_path, 4, 8, evaluates=False)
    assert curves(tmp_path)["val", "Losses/total"] == [(2, 20.0), (4, 40.0)]


def test_the_results_of_a_process_that_follows_the_run_stay(make_trainer, tmp_path):
    with_eval = make_trainer([TensorBoard(tmp_path / "eval")])
    with_eval.begin(8)
    with_eval.log(8, {"losses/total": 1.0})
    with_eval.end()
    _run(make_trainer, tmp_path, 4, 6)
    assert curves(tmp_path)["eval", "Losses/total"] == [(8, 1.0)]


@pytest.mark.parametrize("name", ["train", "eval", "checkpoints", "..", "a/b"])
def test_a_name_that_is_no_directory_of_its_own_stays_in_the_tag(make_trainer, tmp_path, name):
    hooks = [TensorBoard(), Evaluate(NO_DATA, {}, name=name)]
    trainer = make_trainer(hooks, workdir=tmp_path / "run", results={1: {"accuracy": 0.5}})
    trainer.begin(1)
    trainer.step = 1
    trainer.end()
    assert curves(tmp_path) == {("run/train", f"{name}/accuracy"): [(1, 0.5)]}


def test_a_workdir_of_an_earlier_version_goes_on(make_trainer, tmp_path):
    """There, all values were in `train`, under their own names; those of step 20 come again."""
    old = EventLog(tmp_path / "train")
    for step in (10, 20, 30):
        old.add_scalars(
            step, 0.0, {"losses/total": 1.0 * step, "accuracy": 1.0, "learning_rate": 1.0}
        )
        old.add_scalars(step, 0.0, {"val/losses/total": 2.0 * step})
    old.write()
    old.close()
    hooks = [TensorBoard(), Evaluate(NO_DATA, {}, losses=True)]
    trainer = make_trainer(hooks, workdir=tmp_path, step=20)
    pending = {20: frozenset({"losses/total", "accuracy", "learning_rate"})}
    begin = RunInfo(20, 30, pending=pending)
    trainer.run = begin
    for hook in hooks:
        hook.trainer = trainer
    hooks[0].before_train()
    trainer.log(20, {"losses/total": 21.0, "learning_rate": 2.0})
    trainer.log(30, {"val/losses/total": 61.0})
    hooks[0].after_train()
    assert curves(tmp_path) == {
        ("train", "losses/total"): [(10, 10.0)],
        ("train", "Losses/total"): [(20, 21.0)],
        ("train", "accuracy"): [(10, 1.0)],
        ("train", "learning_rate"): [(10, 1.0)],
        ("train", "Training/learning_rate"): [(20, 2.0)],
        ("train", "val/losses/total"): [(10, 20.0), (20, 40.0)],
        ("val", "Losses/total"): [(30, 61.0)],
    }
