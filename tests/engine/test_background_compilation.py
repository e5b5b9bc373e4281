"""The loop is compiled while training goes on: the same numbers, and an end at any moment."""

import os
import random
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.engine.test_mode_runner import Deep, Ordered, X
from tests.fork import started_script
from tests.toys import rows
from tfloss import _upstream
from tfloss.engine import autotune, background_compilation
from tfloss.engine.background_compilation import available_bytes
from tfloss.engine.xla_loop import XlaLoop
from tfloss.errors import DataError, NonFiniteLossError
from tfloss.hooks import Every, Hook, NaNGuard, Unfreeze

compile_on_copies = _upstream.compile_on_copies


@pytest.fixture
def eager_tuner(monkeypatch):
    """Graph and loop are measured in 20 steps each; the loop wins."""

    def rate(self, mode, *_):
        for _ in range(2 if mode == "loop" else measured[0]):
            yield mode, 10
        return {"graph": 100.0, "loop": 300.0}[mode]

    measured = [2]
    monkeypatch.setattr(autotune, "COMPILING", 0.0)
    monkeypatch.setattr(autotune, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "EXPECTED_SAVING", {"loop": 1e6, "step": 1e6})
    monkeypatch.setattr(autotune.Tuner, "_rate", rate)
    return measured


def train(steps=300, model=Deep, data=None, hooks=(), **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    options = {"default_hooks": False, "steps_per_call": 10} | options
    with (options.get("strategy") or tf.distribute.get_strategy()).scope():
        trainer = tfloss.Trainer(model(), keras.optimizers.Adam(0.01), hooks=hooks, **options)
        trainer.train(rows(X, 8) if data is None else data, steps)
    return trainer


def threads():
    return [one for one in threading.enumerate() if one.name == "tfloss-compiler"]


def state(trainer):
    return [one.numpy() for one in trainer.train_step.state()]


@pytest.mark.parametrize("calls", [0, 7])
def test_the_weights_are_the_same_to_the_bit_beside_or_before(calls, eager_tuner, monkeypatch):
    """The thread is done after some calls of 10 steps as a graph, or the graph runs as many."""
    asked = []

    def done(self):
        asked.append(self)
        return len(asked) > calls and self._thread.join() is None

    with monkeypatch.context() as patch:
        patch.setattr(background_compilation._Compilation, "done", property(done))
        beside = train(log_every=1000)
    assert beside.mode == "loop" and len(asked) > calls
    monkeypatch.setattr(background_compilation, "_fits", lambda state, block: False)
    eager_tuner[0] += calls
    before = train(log_every=1000)
    assert before.mode == "loop"
    for one, other in zip(state(beside), state(before), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cores", [1, 2])
def test_training_leaves_the_only_core_to_the_compiler(cores, eager_tuner, monkeypatch):
    """It waits after each call, until the compiler is done."""
    waited = []

    def done(self):
        return len(waited) >= 3 and self._thread.join() is None

    monkeypatch.setattr(background_compilation._Compilation, "done", property(done))
    monkeypatch.setattr(
        background_compilation._Compilation, "wait", lambda self, seconds: waited.append(seconds)
    )
    monkeypatch.setattr(background_compilation, "available_cores", lambda: cores)
    trainer = train(200, log_every=1000)
    assert trainer.mode == ("loop" if cores == 1 else None)
    assert len(waited) == (3 if cores == 1 else 0)
    compiler = trainer._modes._compiler
    for seconds in (0.1, 0.5, 3.0):
        compiler.leave_core(seconds)
    expected = [0.2, 0.45, 0.0]  # progress is shown each second
    assert waited[3:] == (pytest.approx(expected) if cores == 1 else [])


@pytest.mark.parametrize("drop", [True, False])
def test_the_loop_that_was_compiled_is_the_one_that_runs(drop, eager_tuner, monkeypatch):
    """Where the last batch may be smaller, the size of a batch isn't static."""
    waits = property(lambda self: self._thread.join() is None)
    monkeypatch.setattr(background_compilation._Compilation, "done", waits)
    data = tf.data.Dataset.from_tensor_slices({"x": X}).repeat().batch(8, drop_remainder=drop)
    trainer = train(data=data)
    assert trainer.mode == "loop"
    assert len(trainer._modes._engines["loop"]._compiled._programs) == 1


def test_the_loop_is_not_compiled_again(eager_tuner, monkeypatch):
    """TensorFlow compiles a program again if it is called with other options."""
    compiling, calls = [], []

    def timed(function, spent):
        def call(*arguments):
            began = time.process_time()
            result = function(*arguments)
            spent.append(time.process_time() - began)
            return result

        return call

    waits = property(lambda self: self._thread.join() is None)
    monkeypatch.setattr(background_compilation._Compilation, "done", waits)
    monkeypatch.setattr(_upstream, "compile_on_copies", timed(compile_on_copies, compiling))
    monkeypatch.setattr(XlaLoop, "run", timed(XlaLoop.run, calls))
    train()
    assert calls[0] < compiling[0] / 3, (calls[0], compiling)


def test_a_strategy_of_one_mirrored_replica_compiles_beside(eager_tuner, monkeypatch):
    """In the scope of the strategy, where a mirrored variable has no handle."""
    waits = property(lambda self: self._thread.join() is None)
    monkeypatch.setattr(background_compilation._Compilation, "done", waits)
    found = []
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0"])):
        trainer = train(60, strategy=strategy)
        assert trainer.mode == "loop" and trainer._modes._compiler.used
        found.append(state(trainer))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


class Kept(Hook):
    """Keeps the kernel of the first layer after each tenth step."""

    every = Every(steps=10)

    def __init__(self):
        self.kernels = []

    def after_step(self, step):
        self.kernels.append(self.trainer.model.net.layers[0].kernel.numpy())


@pytest.mark.parametrize("at", [20, 60])
def test_variables_can_be_unfrozen_while_the_loop_compiles(at, eager_tuner, monkeypatch):
    """What was compiled for the frozen step is not run any more. Compiling ends after step 80."""
    asked, frozen = [], at // 10

    def done(self):
        asked.append(self)
        return len(asked) > 8 and self._thread.join() is None

    monkeypatch.setattr(background_compilation._Compilation, "done", property(done))
    found = []
    for jit in ("auto", False):
        kept = Kept()
        trainer = train(hooks=[Unfreeze(at, "*/dense/*"), kept], jit=jit)
        changed = [not np.array_equal(one, kept.kernels[0]) for one in kept.kernels]
        assert changed == [False] * frozen + [True] * (30 - frozen)
        found.append((trainer.mode, state(trainer)))
    assert found[0][0] == "loop" and len(asked) > 8
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


class Picky(Deep):
    """Its forward pass can no longer be traced once it was trained.

    What a gradient keeps of a branch is traced again for XLA (`tfloss.engine.step_copy`).
    """

    trained = False

    def call(self, batch, training=False):
        if self.trained:
            raise ValueError("traced too late")
        found = super().call(batch, training)
        if training:
            error = found["error"]
            found["error"] = tf.cond(error > 0.0, lambda: tf.tanh(error), lambda: error)
        return found


class Train(Hook):
    every = Every(steps=10)

    def after_step(self, step):
        self.trainer.model.trained = True


def test_a_trace_that_raises_leaves_the_graph(eager_tuner, messages):
    trainer = train(model=Picky, hooks=[Train()])
    assert trainer.mode == "graph" and trainer.step == 300
    assert any("traced too late" in one for one in messages)


def test_a_compiler_that_fails_leaves_the_graph(eager_tuner, monkeypatch, messages):
    def fail(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(_upstream, "compile_on_copies", fail)
    trainer = train()
    assert trainer.mode == "graph" and trainer.step == 300
    assert any("no memory" in one for one in messages)


class Change(Hook):
    """Freezes a layer while the loop is compiled, so that it is traced again."""

    every = Every(steps=50)

    def after_step(self, step):
        if step == 50:
            self.trainer.train_step.optimizers["optimizer"].clipnorm = 0.5


class Stop(Hook):
    every = Every(steps=60)

    def after_step(self, step):
        self.trainer.stop("enough")


class Bad(Deep):
    def call(self, batch, training=False):
        found = super().call(batch, training)
        if training:
            late = tf.cast(tfloss.current_step() > 70, tf.float32)
            found["error"] /= 1.0 - late
        return found


@pytest.fixture
def slow_compiler(monkeypatch):
    """The compiler waits for the end of the test."""
    end = threading.Event()
    monkeypatch.setattr(_upstream, "compile_on_copies", lambda *arguments: end.wait())
    yield end
    end.set()
    for one in threads():
        one.join()


def test_whatever_ends_a_run_meanwhile(eager_tuner, slow_compiler, tmp_path):
    trainer = train(workdir=tmp_path, steps_per_call="auto")
    assert trainer.step == 300 and trainer.mode is None and len(threads()) == 1
    trainer.save_checkpoint()
    assert train(310, workdir=tmp_path).step == 310
    assert train(hooks=[Stop()]).step == 60
    with pytest.raises(NonFiniteLossError, match="at step 72"):
        train(model=Bad, hooks=[NaNGuard()])
    with pytest.raises(DataError, match="ended after 80 batches"):
        train(data=rows(X, 8).take(80))
    assert train(hooks=[Change()]).step == 300
    slow_compiler.set()


def test_a_loop_that_is_traced_again_is_compiled_again(eager_tuner, slow_compiler, monkeypatch):
    compiled = []

    def compiler(*arguments):
        compiled.append(arguments[0])
        slow_compiler.wait()
        compile_on_copies(*arguments)

    class Open(Hook):
        every = Every(steps=100)

        def after_step(self, step):
            slow_compiler.set()
            for one in threads():
                one.join()

    monkeypatch.setattr(_upstream, "compile_on_copies", compiler)
    trainer = train(hooks=[Change(), Open()])
    assert len(compiled) == 2 and compiled[0] is not compiled[1]
    assert trainer.mode == "loop" and trainer.step == 300


def _runs(lengths, monkeypatch):
    """Runs that end before, while and after the loop is compiled, with the batches of a graph."""
    draw = random.Random(0)

    def delayed(*arguments):
        time.sleep(draw.random() * 0.3)
        compile_on_copies(*arguments)
        time.sleep(draw.random() * 0.1)

    monkeypatch.setattr(_upstream, "compile_on_copies", delayed)
    data = tf.data.Dataset.range(10**6).map(
        lambda i: {"x": tf.cast(i + tf.range(8, dtype=tf.int64), tf.float32)}
    )
    expected = {}
    modes = set()
    for steps in lengths:
        if steps not in expected:
            expected[steps] = train(steps, Ordered, data, jit=False).model.seen.numpy()
        trainer = train(steps, Ordered, data, steps_per_call="auto")
        assert trainer.step == steps and trainer.model.seen.numpy() == expected[steps]
        modes.add(trainer.mode)
    for one in threads():
        one.join(60)
    assert not threads()
    return modes


def test_runs_with_random_delays(eager_tuner, monkeypatch):
    _runs([60, 1500], monkeypatch)


@pytest.mark.slow
def test_many_runs_with_random_delays(eager_tuner, monkeypatch):
    lengths = random.Random(1).choices([60, 150, 1500, 8000], k=200)
    assert {None, "loop"} <= _runs(lengths, monkeypatch)


SCRIPT = """
import sys
import keras
import tensorflow as tf
import tfloss
from tfloss import _upstream
from tfloss.engine import autotune

def endless(*arguments):
    def many(x):
        for i in range(3000):
            x = tf.tanh(x @ x) + tf.reduce_mean(x, 0) * float(i)
        return x
    function = tf.function(many, jit_compile=True, autograph=False)
    program = function.get_concrete_function(tf.TensorSpec([32, 32]))
    print("compiles", file=sys.stderr, flush=True)
    program(tf.zeros([32, 32]))  # takes XLA minutes
    print("compiled", file=sys.stderr, flush=True)

_upstream.compile_on_copies = endless
autotune.COMPILING = autotune.COMPILING_SECONDS = 0.0
autotune.EXPECTED_SAVING = {"loop": 1e9, "step": 1e9}

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones")

    def call(self, batch, training=False):
        return {"a": (self.w * tf.reduce_mean(batch)) ** 2}

data = tf.data.Dataset.from_tensors(tf.ones([4])).repeat()
trainer = tfloss.Trainer(Model(), keras.optimizers.SGD(0.01), workdir=sys.argv[1])
trainer.train(data, 10**9)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_ends_a_run_that_compiles(number, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(SCRIPT)
    run = tmp_path / "run"
    with started_script(script, str(run), environment={"CUDA_VISIBLE_DEVICES": "-1"}) as process:
        err, until = tmp_path / "err", time.monotonic() + 120
        while not (err.exists() and "compiles" in err.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)
        began = time.monotonic()
        os.kill(process.pid, number)
        process.join(60)
        seconds = time.monotonic() - began
    text = (tmp_path / "err").read_text()
    assert "compiled" not in text
    assert process.exitcode in ((75,) if number == signal.SIGTERM else (130, 1, -2)), text
    assert seconds < 20
    assert list((run / "checkpoints").iterdir())


def test_the_memory_that_is_available(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:   50 kB\n")
    assert available_bytes(file) == 50 * 1024
    assert available_bytes(tmp_path / "none") is None


def test_a_loop_that_needs_more_memory_than_there_is_is_not_begun(monkeypatch):
    monkeypatch.setattr(background_compilation, "available_bytes", lambda: 600 * 2**20)
    block = tf.zeros([1024])
    assert background_compilation._fits(20 * 2**20, block)
    assert not background_compilation._fits(30 * 2**20, block)
