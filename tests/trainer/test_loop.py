"""What the loop tells of time. Cuts and hooks are tested with the trainer."""

import time

import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.fork import run_script
from tests.toys import Line, rows
from tfloss.errors import NonFiniteLossError
from tfloss.hooks import Every, Hook, NaNGuard
from tfloss.trainer import loop


def slowly(secs):
    def pull(x):
        time.sleep(secs)
        return x

    def element(batch):
        x = tf.numpy_function(pull, [batch["x"]], tf.float32)
        return {"x": tf.ensure_shape(x, [4])}

    return rows([1.0, 2.0, 3.0, 4.0], 4).map(element)


class Logs(Hook):
    every = Every(steps=10)

    def __init__(self, seconds=0.0, kind="hooks", sleep=time.sleep):
        self.seconds, self.time_bucket, self.sleep, self.logs = seconds, kind, sleep, []

    def after_step(self, step):
        self.sleep(self.seconds)

    def on_log(self, step, scalars, summaries):
        self.logs.append(scalars)


def trained(data, jit, hook, **options):
    trainer = tfloss.Trainer(
        Line(),
        tf.keras.optimizers.SGD(0.01),
        jit=jit,
        log_every=10,
        hooks=[hook],
        default_hooks=False,
        **options,
    )
    trainer.train(data, 30)
    return trainer


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_waiting_for_data_is_measured_and_warned_of(jit, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_WAIT_SECONDS", 0.1)
    hook = Logs()
    trained(slowly(0.03), jit, hook)
    # On a busy machine, the steps can take long by chance.
    assert 0.8 < max(one["input/wait_fraction"] for one in hook.logs[1:]) <= 1.0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "waiting for data" in x]
    assert "input/wait_fraction" in line and ".map(..., num_parallel_calls" in line


def test_the_advice_for_a_slow_source_is_about_its_functions(capsys, monkeypatch):
    class Slow:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            time.sleep(0.01)
            return {"x": np.float32(index)}

    monkeypatch.setattr(loop, "_WAIT_SECONDS", 0.1)
    source = tfloss.data.Source(Slow(), batch_size=4, num_parallel_calls=1)
    trained(source, False, Logs())
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "waiting for data" in x]
    assert "__getitem__" in line and "AUTOTUNE" not in line


@pytest.mark.parametrize("jit", [False, "loop"])
def test_a_fast_input_is_not(jit, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_WAIT_SECONDS", 0.0)
    hook = Logs(0.2)
    trained(rows([1.0, 2.0, 3.0, 4.0], 4), jit, hook)
    assert min(one["input/wait_fraction"] for one in hook.logs[1:]) < 0.2
    assert "waiting for data" not in capsys.readouterr().err


ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import keras
import tensorflow as tf
import tfloss

class Deep(keras.Model):
    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([keras.layers.Dense(64, "tanh") for _ in range(60)])

    def call(self, batch, training=False):
        return tf.reduce_mean(self.net(batch) ** 2)

class Watch(tfloss.hooks.Hook):
    every = tfloss.hooks.Every(steps=40)

    def after_step(self, step):
        if self.trainer.mode is not None:
            self.trainer.stop("the mode is decided")

data = tf.data.Dataset.from_tensors(tf.ones([16, 64])).repeat()
trainer = tfloss.Trainer(
    Deep(), keras.optimizers.SGD(0.01), jit="auto", hooks=[Watch()], default_hooks=False,
    log_every=20,
)
trainer.train(data, 100_000)
print(trainer.mode)
"""


@pytest.mark.slow
def test_on_one_core_the_faster_loop_is_chosen(tmp_path):
    """The time that a graph of 120 small variables takes is not taken for that of the data."""
    script = tmp_path / "one_core.py"
    script.write_text(ONE_CORE)
    found = run_script(script, environment={"CUDA_VISIBLE_DEVICES": "-1"})
    assert (found.returncode, found.stdout.split()) == (0, ["loop"]), found.stderr


@pytest.mark.parametrize("kind", ["hooks", "checkpoint"])
def test_hooks_and_checkpoints_are_measured(kind):
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    hook = Logs(1000.0, kind, sleep)
    trainer = trained(rows([1.0, 2.0, 3.0, 4.0], 4), False, hook, clock=lambda: now)
    assert hook.logs[-1][f"time/{kind}_fraction"] > 0.99  # of the time since the log before
    assert trainer.stopwatch.seconds()[kind] == 3000.0


class Written(Logs):
    """A writer: may be told late."""

    every = None
    async_logs = True

    def __init__(self, other=None):
        super().__init__()
        self.other = other

    def on_log(self, step, scalars, summaries):
        self.logs.append((step, self.trainer.step, scalars))


class Watched(Written):
    async_logs = False


def looped(hooks, jit="loop", steps=100, **options):
    trainer = tfloss.Trainer(
        Line(),
        tf.keras.optimizers.SGD(0.01),
        jit=jit,
        log_every=10,
        hooks=hooks,
        default_hooks=False,
        **options,
    )
    trainer.train(rows([1.0, 2.0, 3.0, 4.0], 2), steps)
    return trainer


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), {"log_every_step": True}, {"accumulate": 3}],
)
def test_logs_that_may_wait_do_not_cut_a_compiled_loop_and_are_the_same(options):
    late, exact = Written(), Watched()
    looped([late], **options)
    looped([exact], **options)
    assert [step for step, now, _ in exact.logs if now == step] == list(range(10, 101, 10))
    assert any(now > step for step, now, _ in late.logs if step % 10 == 0)
    assert [step for step, *_ in late.logs] == [step for step, *_ in exact.logs]
    for (_, _, one), (_, _, other) in zip(late.logs, exact.logs, strict=True):
        assert one.keys() == other.keys()
        assert one["losses/total"] == other["losses/total"]


@pytest.mark.parametrize("jit", [False, "loop"])
def test_one_hook_that_watches_has_each_log_at_its_step(jit):
    late, watching = Written(), Watched()
    looped([late, watching], jit)
    for hook in (late, watching):
        assert [step for step, now, _ in hook.logs if now == step] == list(range(10, 101, 10))


def test_a_hook_is_due_at_its_step_and_finds_what_was_logged_before_it():
    class Due(Written):
        every = Every(steps=25)

        def after_step(self, step):
            assert step == self.trainer.step
            self.seen = [*getattr(self, "seen", []), (step, max([0, *(x for x, *_ in self.logs)]))]

    hook = Due()
    looped([hook])
    assert hook.seen == [(25, 20), (50, 50), (75, 70), (100, 100)]


@pytest.mark.parametrize("jit", [False, "loop"])
def test_what_was_logged_before_a_bad_loss_is_written(jit):
    def root(model, batch, y):
        return {"root": tf.reduce_mean(tf.sqrt(model.w + 0.0 * y))}  # w falls, at last below 0

    hook = Written()
    trainer = tfloss.Trainer(
        Line(root),
        tf.keras.optimizers.SGD(0.01),
        jit=jit,
        log_every=10,
        hooks=[NaNGuard(), hook],
        default_hooks=False,
    )
    with pytest.raises(NonFiniteLossError, match="root") as error:
        trainer.train(rows([1.0, 2.0], 2), 1000)
    weight, step = 1.0, 1
    while weight >= 0:
        weight, step = weight - 0.01 * 0.5 / weight**0.5, step + 1
    assert error.value.step == step == 136
    assert [step for step, *_ in hook.logs] == list(range(10, 131, 10))
    assert trainer.train_step.counter.numpy() == 135


def test_calls_get_longer_up_to_a_second_and_shorter_at_once():
    most, seen = 1, []
    for _ in range(5):  # steps of 0.15 s
        most = loop.next_limit(most, most, 0.15 * most)
        seen.append(most)
    assert seen == [2, 4, 6, 6, 6]
    assert loop.next_limit(1, 1, 8.0) == 1  # it compiled
    assert loop.next_limit(64, 1, 0.1) == 64  # cut short, and written out
    assert loop.next_limit(400, 400, 4.0) == 100
    assert loop.next_limit(400, 30, 3.0) == 10  # the data got slow
    assert loop.next_limit(800, 800, 0.0) == 1000
