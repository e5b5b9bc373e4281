"""A run that ends and goes on is the run that nobody disturbed: data, logs, random states."""

import json
import random
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss import _upstream
from tfloss.checkpoint import CheckpointDirectory, load_manifest
from tfloss.checkpoint.manifest import write_manifest
from tfloss.common.checksums import tree_checksums
from tfloss.errors import CheckpointError, DataError, WorkdirInUseError
from tfloss.hooks import Every, Hook, SaveCheckpoint
from tfloss.trainer.workdir_lock import WorkdirLock


def numbers(count=50, seed=0):
    data = tf.data.Dataset.range(count).map(lambda i: {"x": tf.cast(i, tf.float32)})
    return data.shuffle(10, seed=seed).repeat().batch(2, drop_remainder=True)


class Saw(Hook):
    """The losses of every step, which are the means of its batch."""

    def __init__(self):
        self.seen = []

    def on_log(self, step, scalars, summaries):
        if "losses/total" in scalars:
            self.seen.append((step, scalars["losses/total"]))


def mean_of_batch(model, batch, y):
    return {"mean": tf.reduce_mean(batch["x"]) + 0.0 * y[0]}


def make(workdir, **options):
    saw = Saw()
    options = {"log_every": 1, "jit": False, "hooks": [saw], **options}
    trainer = tfloss.Trainer(
        Line(mean_of_batch), keras.optimizers.SGD(0.1), workdir=workdir, seed=0, **options
    )
    return trainer, saw


def test_the_data_go_on_where_the_checkpoint_was(tmp_path):
    whole, saw = make(tmp_path / "whole")
    whole.train(numbers(), 20)
    first, begun = make(tmp_path / "parts")
    first.train(numbers(), 8)
    second, ended = make(tmp_path / "parts")
    second.train(numbers(), 20)
    assert begun.seen + ended.seen == saw.seen


@pytest.mark.parametrize("at", [5, 10, 13])
def test_a_script_that_trains_on_two_data_sets_resumes_in_the_right_one(tmp_path, at):
    """The first call has nothing to do any more, or the second not begun."""

    def script(workdir, first, second):
        trainer, saw = make(workdir)
        trainer.train(numbers(seed=1), first)
        if second:
            trainer.train(numbers(seed=2), second)
        return saw.seen

    whole = script(tmp_path / "whole", 10, 20)
    part = script(tmp_path / "parts", min(at, 10), at if at > 10 else 0)
    assert part + script(tmp_path / "parts", 10, 20) == whole


def test_fewer_steps_than_before_do_not_lose_the_place(tmp_path):
    whole, saw = make(tmp_path / "whole")
    whole.train(numbers(), 15)

    class Stop(Hook):
        every = Every(steps=6)

        def after_step(self, step):
            self.trainer.stop("enough")

    first, _ = make(tmp_path / "parts")
    first.train(numbers(), 100, hooks=[Stop()])
    second, ended = make(tmp_path / "parts")
    second.train(numbers(), 15)
    assert ended.seen == saw.seen[6:]


def test_what_was_not_logged_yet_is_in_the_next_log(tmp_path):
    whole, saw = make(tmp_path / "whole", log_every=7)
    whole.train(numbers(), 21)
    crash = RuntimeError("as if killed")

    class Crash(Hook):
        every = Every(steps=12)

        def after_step(self, step):
            raise crash

    saving = SaveCheckpoint(Every(steps=5))
    first, begun = make(
        tmp_path / "parts", log_every=7, hooks=[saw_first := Saw(), saving, Crash()]
    )
    with pytest.raises(RuntimeError, match="as if killed"):
        first.train(numbers(), 21)
    again, ended = make(tmp_path / "parts", log_every=7)
    again.train(numbers(), 21)
    assert saw_first.seen == saw.seen[:1]
    assert ended.seen == saw.seen[1:]  # 14 is the mean of 8 to 14, though 8 to 10 are of the first
    lines = [json.loads(x) for x in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["losses/total"]) for x in lines] == saw.seen


def test_an_interrupted_call_goes_on_in_the_same_process_too(tmp_path):
    whole, saw = make(tmp_path / "whole", log_every=7)
    whole.train(numbers(), 14)

    class Interrupt(Hook):
        every = Every(steps=4)

        def after_step(self, step):
            raise KeyboardInterrupt

    trainer, seen = make(tmp_path / "parts", log_every=7)
    data = numbers()
    with pytest.raises(KeyboardInterrupt):
        trainer.train(data, 14, hooks=[Interrupt()])
    trainer.train(data, 14)
    assert seen.seen == saw.seen


@pytest.mark.promise(19)
def test_a_source_is_sought(tmp_path):
    def source():
        x = np.arange(50, dtype=np.float32)
        return tfloss.data.Source({"x": x}, batch_size=2, seed=1)

    whole, saw = make(tmp_path / "whole")
    whole.train(source(), 60)
    first, begun = make(tmp_path / "parts")
    first.train(source(), 37)
    manifest = load_manifest(CheckpointDirectory(tmp_path / "parts/checkpoints").latest())
    assert manifest["extra"]["data"]["strategy"] == "seek"
    assert manifest["extra"]["data"]["batches"] == 37
    second, ended = make(tmp_path / "parts", jit="loop")
    second.train(source(), 60)
    assert begun.seen + ended.seen == saw.seen


def test_random_states_of_the_process_go_on(tmp_path):
    trainer, _ = make(tmp_path)
    np.random.seed(3)
    random.seed(4)
    np.random.normal()  # NumPy keeps a second one for later
    trainer.train(numbers(), 3)
    drawn = [np.random.normal(), np.random.rand(), random.gauss(0, 1), random.random()]
    again, _ = make(tmp_path)
    again.restore(numbers())
    assert [np.random.normal(), np.random.rand(), random.gauss(0, 1), random.random()] == drawn


def test_a_model_may_draw_from_the_global_generators(tmp_path, monkeypatch):
    """Their states are in the checkpoint, so nobody warns."""

    def draw(model, batch, y):
        noise = tf.random.get_global_generator().normal([])
        return {"mean": tf.reduce_mean(y) + noise + keras.random.normal([])}

    def script(workdir, steps):
        monkeypatch.setattr(
            _upstream.random_generators.stateful_random_ops, "global_generator", None
        )
        keras.backend.clear_session()
        saw = Saw()
        line = Line(draw)
        trainer = tfloss.Trainer(
            line, keras.optimizers.SGD(0.1), workdir=workdir, seed=0, log_every=1, hooks=[saw]
        )
        tf.random.get_global_generator().reset_from_seed(5)
        trainer.train(numbers(), steps)
        return saw.seen

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = script(tmp_path / "whole", 8)
        assert script(tmp_path / "parts", 5) + script(tmp_path / "parts", 8) == whole


def test_other_versions_are_reported(tmp_path, monkeypatch):
    trainer, _ = make(tmp_path)
    trainer.train(numbers(), 1)
    monkeypatch.setattr("tfloss.trainer.run_checkpoint.versions", lambda: {"tensorflow": "9.9"})
    again, _ = make(tmp_path)
    with pytest.warns(UserWarning, match=f"was saved: tensorflow {tf.__version__} -> 9.9"):
        again.train(numbers(), 2)


def test_the_config_is_kept(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 5}')
    trainer, _ = make(tmp_path)
    trainer.train(numbers(), 1)
    assert load_manifest(trainer.checkpoints.latest())["extra"]["config"] == {"steps": 5}


@pytest.mark.parametrize("name", ["{}/victim", "../victim", "link/victim", "..", 5, "missing"])
def test_nothing_is_written_where_a_manifest_says(tmp_path, name):
    """The manifest names the files of the data position. Somebody else may have written it."""
    trainer, _ = make(tmp_path / "run")
    trainer.train(numbers(), 2)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = name.format(tmp_path) if isinstance(name, str) else name
    path = trainer.checkpoints.latest()
    manifest = load_manifest(path)
    manifest["extra"]["data"]["files"].append(name)
    for key in ("sha256", "format", "files"):
        del manifest[key]
    (path / "manifest.json").unlink()
    write_manifest(path, manifest)
    before = tree_checksums(tmp_path)
    again, _ = make(tmp_path / "run")
    with pytest.raises(CheckpointError, match="as a file of the position in the data, but"):
        again.train(numbers(), 4)
    after = tree_checksums(tmp_path)
    assert {k: v for k, v in after.items() if k in before and "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    hooks = [Saw(), SaveCheckpoint(Every(steps=5))]
    trainer, _ = make(tmp_path, hooks=hooks)
    trainer.train(numbers(), 10)
    newest = trainer.checkpoints.latest()
    (data,) = newest.glob("variables.data-*")
    data.write_bytes(data.read_bytes()[:-1])
    again, saw = make(tmp_path)
    again.train(numbers(), 10)
    out = capsys.readouterr().err
    assert data.name in out and "resuming at step 5" in out
    assert saw.seen == hooks[0].seen[5:]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 11))


def test_no_whole_checkpoint_is_no_reason_to_begin_anew(tmp_path, capsys):
    trainer, _ = make(tmp_path)
    trainer.train(numbers(), 3)
    (trainer.checkpoints.latest() / "manifest.json").unlink()
    again, _ = make(tmp_path)
    with pytest.raises(CheckpointError, match="None of the checkpoints .* is valid"):
        again.train(numbers(), 5)
    assert "manifest.json is missing" in capsys.readouterr().err


class Late(Hook):
    """Logs at the end, and keeps how often."""

    def after_train(self):
        if self.trainer.error is None:
            self.state["ends"] = self.state.get("ends", 0) + 1
            self.trainer.log(self.trainer.step, {"late": float(self.state["ends"])})


def test_what_belongs_to_the_end_is_in_the_last_checkpoint_or_comes_again(tmp_path):
    """A checkpoint is due at the last step; the process is killed before the end has saved."""

    class Killed(Hook):
        every = Every(steps=10)

        def after_step(self, step):
            if step == 10:
                raise RuntimeError("as if killed")

    saving = SaveCheckpoint(Every(steps=5))
    trainer, _ = make(tmp_path, hooks=[Late(), saving, Killed()])
    with pytest.raises(RuntimeError):
        trainer.train(numbers(), 10)
    late = Late()
    again, _ = make(tmp_path, hooks=[late, SaveCheckpoint(Every(steps=5))])
    again.train(numbers(), 10)
    assert late.state == {"ends": 1}
    third, _ = make(tmp_path, hooks=[Late(), SaveCheckpoint(Every(steps=5))])
    third.train(numbers(), 10)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["late"] for x in lines if "late" in x] == [1.0]


def test_a_run_that_was_stopped_does_its_end_once(tmp_path):
    class Stop(Hook):
        every = Every(steps=3)

        def before_train(self):
            if self.state.get("stop"):
                self.trainer.stop("enough")

        def after_step(self, step):
            self.state["stop"] = True
            self.trainer.stop("enough")
            if not self.state.get("saved"):
                self.state["saved"] = True
                self.trainer.save_checkpoint()
                raise RuntimeError("as if killed")

    trainer, _ = make(tmp_path, hooks=[Stop(), Late()], log_every=2)
    with pytest.raises(RuntimeError):
        trainer.train(numbers(), 10)
    for _ in range(2):
        again, _ = make(tmp_path, hooks=[Stop(), Late()], log_every=2)
        again.train(numbers(), 10)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "losses/total" in x] == [2, 3]
    assert len([x for x in lines if "late" in x]) <= 2


def test_data_that_have_ended_have_ended(tmp_path):
    def finite():
        return tf.data.Dataset.range(24).map(lambda i: {"x": tf.cast(i, tf.float32)}).batch(2)

    for _ in range(2):
        trainer, _ = make(tmp_path)
        with pytest.raises(DataError, match="ended after 12 batches, at step 12 of 20"):
            trainer.train(finite(), 20)
    once, _ = make(tmp_path / "once")
    once.train(finite(), 12)
    again, _ = make(tmp_path / "once")
    assert again.train(finite(), 20).step == 20  # a call of its own begins the data anew


def test_hooks_of_one_call_get_their_states_back(tmp_path):
    class Count(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            self.state["calls"] = self.state.get("calls", 0) + 1

    def script(steps):
        trainer, _ = make(tmp_path)
        counts = Count(), Count()
        trainer.train(numbers(), min(steps, 4), hooks=[counts[0]])
        if steps > 4:
            trainer.train(numbers(), steps, hooks=[counts[1]])
        return [count.state.get("calls", 0) for count in counts]

    assert script(7) == [4, 3]
    assert script(9) == [0, 5]  # the first call has nothing to do, the second goes on


def test_a_save_before_the_call_it_is_of_keeps_its_place(tmp_path):
    whole, saw = make(tmp_path / "whole")
    whole.train(numbers(), 12)
    first, begun = make(tmp_path / "parts")
    first.train(numbers(), 5)
    second, _ = make(tmp_path / "parts")
    second.restore(numbers())
    second.save_checkpoint()
    third, ended = make(tmp_path / "parts")
    third.train(numbers(), 12)
    assert begun.seen + ended.seen == saw.seen


def test_a_relative_workdir_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, _ = make("runs/a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trainer.train(numbers(), 2)
    assert (tmp_path / "runs/a/checkpoints/step_00000002").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


DETERMINISTIC = """
import sys, keras, tensorflow as tf, tfloss
from tests.toys import Line
from tests.trainer.test_run_checkpoint import mean_of_batch, numbers
keras.utils.set_random_seed(0)
trainer = tfloss.Trainer(
    Line(mean_of_batch), keras.optimizers.SGD(0.1), seed=0, deterministic=True,
    jit={"loop": "loop", "auto": "auto"}.get(sys.argv[1], sys.argv[1] == "True"),
    workdir=sys.argv[2],
)
data = numbers() if sys.argv[1] != "loop" else numbers().take(50)
print(trainer.train(data, 30).step)
"""


@pytest.mark.slow
@pytest.mark.parametrize("jit", ["False", "True", "loop", "auto"])
def test_deterministic_runs_train(tmp_path, jit):
    """In a process of their own: op determinism is for good."""
    command = [sys.executable, "-c", DETERMINISTIC, jit, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["30"], done.stderr[-2000:]


def test_a_second_trainer_is_refused(tmp_path):
    trainer, _ = make(tmp_path)
    with (
        WorkdirLock(tmp_path).training(),
        pytest.raises(WorkdirInUseError, match="another Trainer of this process"),
    ):
        trainer.train(numbers(), 1)
    trainer.train(numbers(), 1)


def test_checkpoints_written_in_the_background_are_all_there(tmp_path):
    hooks = [SaveCheckpoint(Every(steps=3), keep_last=None)]
    trainer, _ = make(tmp_path, hooks=hooks, async_checkpoint=True)
    trainer.train(numbers(), 10)
    assert trainer.checkpoints.steps() == [3, 6, 9, 10]
    assert [trainer.checkpoints.problem(step) for step in (3, 6, 9, 10)] == [None] * 4


class Killed(Exception):
    pass


class Kill(Hook):
    """Ends a run without a word, after the checkpoints of its step, as SIGKILL does."""

    every = Every(steps=1)
    time_bucket = "checkpoint"

    def __init__(self, step):
        self.at = step

    def after_step(self, step):
        if step == self.at:
            raise Killed


def twelve(kind):
    if kind == "generator":
        return tf.data.Dataset.from_generator(
            lambda: ({"x": np.float32([i, i])} for i in range(12)),
            output_signature={"x": tf.TensorSpec([2], tf.float32)},
        )
    arrays = {"x": np.arange(24, dtype=np.float32)}
    if kind == "source":
        return tfloss.data.Source(arrays, batch_size=2, seed=3, epochs=1)
    data = tf.data.Dataset.from_tensor_slices(arrays).shuffle(24, seed=5).batch(2)
    return data.prefetch(2) if kind == "prefetch" else data


def epochs(workdir, kind, kill, jit, strategy, evaluate=False):
    """The loop over epochs of a script that is killed after some steps, and started again."""
    seen = {}
    for step in [*kill, None]:
        tf.keras.utils.set_random_seed(0)
        saw = Saw()
        with strategy.scope():
            trainer, _ = make(
                workdir,
                strategy=strategy,
                jit=jit,
                hooks=[saw, Kill(step), SaveCheckpoint(tfloss.hooks.OnSteps(5, 11, 12, 17, 24))],
            )
        data = twelve(kind)
        try:
            for epoch in range(3):
                trainer.train(data, 12 * (epoch + 1))
                if evaluate:
                    trainer.evaluate(data, losses=True)
        except Killed:
            pass
        seen |= dict(saw.seen)
    return [seen[step] for step in range(1, 37)]


@pytest.mark.parametrize(
    ("kind", "kill", "jit", "replicas_", "evaluate"),
    [
        ("shuffle", [18], False, 1, False),
        ("shuffle", [12, 24], False, 1, True),
        ("shuffle", [5, 17, 35], "loop", 1, True),
        pytest.param("prefetch", [11, 12, 24], "loop", 1, False, marks=pytest.mark.slow),
        ("prefetch", [11], False, 1, True),
        ("shuffle", [13, 24], False, 2, True),
        pytest.param("source", [6, 24, 30], False, 1, False, marks=pytest.mark.slow),
        ("generator", [18, 25], False, 1, True),
    ],
)
def test_a_loop_over_epochs_resumes_in_any_of_them(
    tmp_path, replicas, kind, kill, jit, replicas_, evaluate
):
    """Each step sees the batch that plain tf.data gives, in the order of its pass."""
    data = twelve(kind)  # with the operation seeds that the script's data have
    expected = []
    for _ in range(3):
        passed = data.dataset() if kind == "source" else data
        expected += [float(np.mean(batch["x"])) for batch in passed.as_numpy_iterator()]
        if evaluate:
            list(data)
    assert len(expected) == 36
    seen = epochs(tmp_path, kind, kill, jit, replicas(replicas_), evaluate)
    assert seen == expected


@pytest.mark.promise(13)
def test_what_a_script_draws_between_its_calls_does_not_change_the_resumed_one(tmp_path):
    class Draw(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            self.state["drawn"] = [*self.state.get("drawn", []), np.random.rand()]

    def script(workdir, kill):
        np.random.seed(0)
        draw = Draw()
        hooks = [draw, SaveCheckpoint(Every(steps=3)), Kill(kill)]
        trainer, _ = make(workdir, hooks=hooks)
        np.random.seed(1)
        data = numbers()
        try:
            for steps in (4, 8):
                trainer.train(data, steps)
                np.random.rand(100)
        except Killed:
            return None
        return draw.state["drawn"]

    whole = script(tmp_path / "whole", None)
    np.random.seed(1)
    expected = np.random.rand(4).tolist(), np.random.rand(100), np.random.rand(4).tolist()
    assert whole == expected[0] + expected[2]
    assert script(tmp_path / "killed", 7) is None  # the checkpoint is that of step 6
    assert script(tmp_path / "killed", None) == whole


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_resumed_compiled_loop_runs_the_same_steps_compiled(tmp_path, log_every):
    """Without summaries no step runs as a graph, wherever the run resumes."""
    for steps in (1, 2, 3, 5, 9):
        trainer, _ = make(tmp_path, jit="loop", log_every=log_every)
        trainer.train(numbers(), steps)
        assert trainer._modes._engines["loop"].traces == 0
