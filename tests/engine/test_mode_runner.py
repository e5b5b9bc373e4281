"""`jit="auto"`: what is chosen, what it costs, and that it changes nothing else."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import rows
from tfloss.data import Source
from tfloss.engine import autotune as tuning
from tfloss.engine import background_compilation
from tfloss.engine import mode_runner as modes
from tfloss.errors import DataError, ModelError
from tfloss.hooks import Every, Hook

X = np.linspace(-1.0, 1.0, 64).astype(np.float32)


class Deep(keras.Model):
    """Many small kernels, so that a loop compiled whole is several times faster than a graph."""

    def __init__(self):
        super().__init__(name="deep")
        self.net = keras.Sequential([keras.layers.Dense(8, activation="tanh") for _ in range(8)])

    def call(self, batch, training=False):
        y = self.net(batch["x"][:, tf.newaxis])[:, 0]
        return {"error": tf.reduce_mean((y - batch["x"]) ** 2)} if training else {"y": y}


class Ordered(Deep):
    """Knows which batches it was trained on, in which order."""

    def __init__(self):
        super().__init__()
        self.seen = self.add_weight(dtype="int64", initializer="zeros", trainable=False)

    def call(self, batch, training=False):
        if training:
            total = tf.cast(tf.reduce_sum(batch["x"]), tf.int64)
            self.seen.assign(self.seen * 31 + total)  # wraps around
        return super().call({"x": batch["x"] / 1000.0}, training)


class Numpy(Deep):
    """Not for XLA."""

    def call(self, batch, training=False):
        x = tf.ensure_shape(tf.numpy_function(lambda x: x, [batch["x"]], tf.float32), [8])
        return super().call({"x": x}, training)


class Seen(Hook):
    every = Every(steps=150)

    def __init__(self):
        self.calls, self.logs = [], []

    def after_step(self, step):
        self.calls.append(step)

    def on_log(self, step, scalars, summaries):
        self.logs.append((step, scalars["losses/error"]))


@pytest.fixture
def patient(monkeypatch):
    """A short run is worth the compilation, and the machine's other work decides nothing."""

    def rate(self, mode, *_):
        yield mode, 5
        yield mode, 20
        return {"graph": 100.0, "step": 200.0, "loop": 300.0}[mode]

    monkeypatch.setattr(tuning, "COMPILING", 0.0)
    monkeypatch.setattr(tuning, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "EXPECTED_SAVING", {"loop": 1e6, "step": 1e6})
    monkeypatch.setattr(tuning.Tuner, "_rate", rate)
    # A run waits for the thread that compiles.
    waits = property(lambda self: self._thread.join() is None)
    monkeypatch.setattr(background_compilation._Compilation, "done", waits)


def run(jit, steps=600, model=Deep, workdir=None, data=None, strategy=None):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    seen = Seen()
    with (strategy or tf.distribute.get_strategy()).scope():
        net, optimizer = model(), keras.optimizers.SGD(0.01)
    trainer = tfloss.Trainer(
        net, optimizer, jit=jit, workdir=workdir, hooks=[seen], default_hooks=False,
        log_every=100, strategy=strategy,
    )  # fmt: skip
    data = rows(X, 8) if data is None else data
    trainer.train(data, steps)
    return trainer, seen


def test_the_fastest_is_chosen_and_the_result_is_the_same(patient, capsys):
    plain, before = run(False)
    trainer, seen = run("auto")
    assert trainer.mode == "loop"
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "runs " in x]
    assert "whole loop compiled by XLA" in line and "as a graph" in line
    assert seen.calls == before.calls == list(range(150, 601, 150))
    assert [step for step, _ in seen.logs] == list(range(100, 601, 100))
    np.testing.assert_allclose(
        [x for _, x in seen.logs], [x for _, x in before.logs], rtol=1e-3, atol=1e-6
    )
    for one, other in zip(plain.model.weights, trainer.model.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-2, atol=1e-3)


def test_a_long_compilation_is_announced(patient, capsys, monkeypatch):
    run("auto", 100)
    monkeypatch.setattr(modes, "ANNOUNCED_SECONDS", 0.0)
    run("auto", 100)  # training continues meanwhile
    assert "XLA compiles" not in capsys.readouterr().err
    monkeypatch.setattr(background_compilation, "_fits", lambda state, block: False)
    run("auto", 100)
    text = capsys.readouterr().err
    assert text.count("XLA compiles the training loop, which takes about 0 s") == 1
    assert text.index("XLA compiles") < text.index("runs with")


def resumed(tmp_path, steps, **changes):
    """Continues a run of 600 steps whose loop won: 300 steps/s against 100, and 1 s to compile."""
    trainer, _ = run("auto", workdir=tmp_path)
    trainer.save_checkpoint()
    file = tmp_path / modes.FILE
    kept = json.loads(file.read_text())
    assert kept["mode"] == "loop" and kept["steps_per_second"] == {"graph": 100.0, "loop": 300.0}
    assert kept["seconds_to_compile"]["loop"] > 0.05
    assert kept["circumstances"]["cores"] > 0 and kept["circumstances"]["processor"]
    kept["seconds_to_compile"] = {"loop": 1.0}
    kept["circumstances"] |= changes
    file.write_text(json.dumps(kept))
    return run("auto", steps, workdir=tmp_path)[0]


@pytest.mark.parametrize("beside", [True, False])
def test_a_resumed_run_compiles_its_winner_and_does_not_measure_again(
    beside, patient, tmp_path, messages, monkeypatch
):
    measured = []
    rate = tuning.Tuner._rate
    monkeypatch.setattr(
        tuning.Tuner,
        "_rate",
        lambda self, mode, *seconds: measured.append(mode) or rate(self, mode, *seconds),
    )
    if not beside:

        class Never(background_compilation.BackgroundCompiler):
            possible = property(lambda self: False, lambda self, value: None)

        monkeypatch.setattr(modes, "BackgroundCompiler", Never)
    trainer = resumed(tmp_path, 3000)
    assert trainer.step == 3000 and trainer.mode == "loop"
    assert measured == ["graph", "loop"]  # by the first run
    assert ("graph" in trainer._modes._engines) == beside  # which trains meanwhile
    (line,) = [one for one in messages if "chosen by an earlier run" in one]
    assert "runs with the whole loop compiled by XLA" in line and " steps/s (chosen by" in line
    assert "for 300 against 100 as a graph" in line


def test_a_resumed_run_of_few_steps_compiles_nothing(patient, tmp_path, messages):
    trainer = resumed(tmp_path, 650)  # half a second
    assert trainer.mode == "graph" and list(trainer._modes._engines) == ["graph"]
    assert any("compiling takes about 1 s, too long for the 0 s left" in one for one in messages)


def test_on_another_machine_the_modes_are_measured_again(patient, tmp_path, messages):
    trainer = resumed(tmp_path, 900, cores=1000)
    assert trainer.mode == "loop"
    assert not any("chosen by an earlier run" in one for one in messages)
    kept = json.loads((tmp_path / modes.FILE).read_text())
    assert kept["circumstances"]["cores"] < 1000


def test_what_was_chosen_elsewhere_is_not_taken_over(patient, tmp_path):
    run("auto", workdir=tmp_path)
    kept = json.loads((tmp_path / modes.FILE).read_text())
    kept["circumstances"]["tensorflow"] = "2.0"
    (tmp_path / modes.FILE).write_text(json.dumps(kept | {"mode": "step"}))
    trainer, _ = run("auto", 700, workdir=tmp_path)
    assert trainer.mode == "loop"
    assert json.loads((tmp_path / modes.FILE).read_text())["mode"] == "loop"


def test_what_does_not_compile_runs_as_a_graph_and_says_why(patient, capsys):
    trainer, seen = run("auto", model=Numpy)
    assert trainer.mode == "graph"
    assert "XLA can't compile it" in capsys.readouterr().err
    _, before = run(False, model=Numpy)
    assert seen.logs == before.logs  # no batch was lost


@pytest.mark.parametrize(
    "data", [rows(X, 8), Source({"x": X}, batch_size=8)], ids=["iterator", "source"]
)
def test_a_step_that_does_not_compile_loses_no_batch(data, patient, capsys, monkeypatch):
    """It takes its batch inside the program."""
    monkeypatch.setattr(modes.ModeRunner, "_candidates", lambda self, reader: ["step"])
    _, seen = run("auto", model=Numpy, data=data)
    assert "XLA can't compile it" in capsys.readouterr().err
    _, before = run(False, model=Numpy, data=data)
    assert seen.logs == before.logs


@pytest.mark.parametrize("mode", ["loop", "step"])
@pytest.mark.parametrize("bad", [26, 29])
def test_an_error_in_the_data_is_not_taken_for_one_of_the_compiler(
    mode, bad, patient, capsys, monkeypatch
):
    """26 batches are a graph's; then another mode is tried, with one batch and with more."""
    monkeypatch.setattr(modes.ModeRunner, "_candidates", lambda self, reader: [mode])

    def read(i):
        x = tf.where(i == bad, np.nan, 1.0) * tf.ones([8])
        return {"x": tf.debugging.check_numerics(x, "corrupt record")}

    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt record") as found:
        run("auto", data=tf.data.Dataset.range(10**6).map(read))
    assert "XLA can't compile it" not in capsys.readouterr().err
    assert not any("compiled with XLA" in note for note in getattr(found.value, "__notes__", []))


@pytest.mark.parametrize("kind", ["iterator", "source"])
@pytest.mark.parametrize("best", ["graph", "loop"])
def test_errors_in_the_data_come_when_they_would_in_a_graph(kind, best, patient, tmp_path):
    """One as a graph, three while the loop is tried, at the end of that too, one afterwards."""
    rates = {"graph": 100.0, "loop": 10.0} | {best: 1000.0}

    def rate(self, mode, *_):
        yield mode, 5
        self.promising = mode == "loop"  # which then reads ahead
        yield mode, 20
        self.promising = False
        return rates[mode]

    bad = np.array([3, 30, 50, 52, 700])

    def read(row):
        text = tf.where(tf.reduce_any(row["x"] == bad), "corrupt", tf.strings.as_string(row["x"]))
        return {"x": tf.strings.to_number(text)}

    def trained(jit):
        numbers = {"x": np.arange(2000)}
        data = Source(numbers, batch_size=1, shuffle=False, map=read)
        if kind == "iterator":
            data = tf.data.Dataset.from_tensor_slices(numbers).map(read).batch(1)
        trainer = tfloss.Trainer(
            Ordered(), keras.optimizers.SGD(0.01), jit=jit, workdir=tmp_path / str(jit),
            default_hooks=False, steps_per_call=200,
        )  # fmt: skip
        ends = []
        while trainer.step < 1500:
            try:
                trainer.train(data, 1500)
            except tf.errors.InvalidArgumentError:
                ends.append(trainer.step)
        return ends, trainer.model.seen.numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Tuner, "_rate", rate)
        patch.setattr(modes.ModeRunner, "_candidates", lambda self, reader: ["loop"])
        auto = trained("auto")
    assert auto == trained(False) and len(auto[0]) == len(bad)


def test_deterministic_is_a_graph_and_says_nothing(patient, tmp_path, capsys):
    made = []
    for jit in ("auto", "loop"):
        trainer, _ = run(False)
        made.append(
            modes.ModeRunner(
                jit,
                trainer.train_step,
                log_every_step=False,
                workdir=tmp_path,
                agreement=trainer.agreement,
                logger=trainer.logger,
                deterministic=True,
            )
        )
        made[-1].prepare(trainer._feed.reader, True, lambda: 10**9)
        made[-1].run(trainer._feed, 1, False)
    assert [list(one._engines) for one in made] == [["graph"], ["loop"]]
    assert not made[0]._compiler.used
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_a_short_run_is_not_spent_on_compiling(capsys):
    trainer, _ = run("auto", 100)
    assert list(trainer._modes._engines) == ["graph"]
    assert capsys.readouterr().err == ""


def test_a_longer_run_after_a_short_one_tries_more(monkeypatch):
    waits = property(lambda self: self._thread.join() is None)
    monkeypatch.setattr(background_compilation._Compilation, "done", waits)
    data = rows(X, 8)
    trainer, _ = run("auto", 100, data=data)

    def rate(self, mode, *_):
        yield mode, 5
        yield mode, 20
        return {"graph": 100.0, "loop": 300.0}[mode]

    monkeypatch.setattr(tuning.Tuner, "_rate", rate)
    monkeypatch.setattr(tuning, "COMPILING", 0.0)
    monkeypatch.setattr(tuning, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "EXPECTED_SAVING", {"loop": 1e6, "step": 1e6})
    trainer.train(data, 400)
    assert trainer.mode == "loop"
    assert trainer._modes._tracing > 0.1  # of the first run, when the step was traced


def test_data_that_ends_while_it_is_measured(patient):
    data = tf.data.Dataset.from_tensor_slices({"x": X}).batch(8, drop_remainder=True).repeat(2)
    with pytest.raises(DataError, match="ended after 16 batches, at step 16 of 600"):
        run("auto", data=data)


def test_several_replicas_try_the_compiled_step(patient, replicas):
    trainer, _ = run("auto", 400, strategy=replicas(2))
    assert trainer.mode in ("graph", "step")
    assert "loop" not in trainer._modes._engines


def test_what_can_not_be_is_refused(replicas):
    with pytest.raises(ValueError, match="jit must be True, False, 'loop' or 'auto'"):
        run("fast")
    with pytest.raises(ModelError, match="one replica"):
        run("loop", strategy=replicas(2))
    ragged = rows(X, 8).map(lambda b: {**b, "name": tf.fill([8], "a")})
    with pytest.raises(DataError, match="strings"):
        run("loop", data=ragged)


def test_batches_of_open_shapes_run_as_a_graph(patient):
    data = rows(X, 8).map(lambda b: {**b, "words": tf.fill([8, tf.size(tf.unique(b["x"])[0])], 1)})
    trainer, _ = run("auto", 200, data=data)
    assert trainer.mode == "graph"


@pytest.mark.upstream
@pytest.mark.parametrize(
    "check",
    [pytest.param("assert_less", marks=pytest.mark.slow), "check_numerics", "gather"],
)
def test_xla_leaves_out_what_only_checks(check):
    """As docs/performance.md says of the modes; when it fails, that is to be changed."""

    class Checked(Deep):
        def call(self, batch, training=False):
            found = super().call(batch, training)
            x = batch["x"]
            if check == "assert_less":
                tf.debugging.assert_less(tf.reduce_max(x), 0.5)
            elif check == "check_numerics":
                x = tf.debugging.check_numerics(tf.where(x > 0.5, np.inf, x), "bad")
                found["error"] += 0.0 * tf.reduce_mean(tf.where(x > 0.5, 0.0, x))
            else:
                index = tf.where(tf.reduce_max(x) > 0.5, 100, 0)
                found["error"] += 0.0 * tf.gather(tf.ones([3]), index)
            return found

    with pytest.raises(tf.errors.InvalidArgumentError):
        run(False, 8, Checked)
    for jit in (True, "loop"):
        trainer, _ = run(jit, 8, Checked)
        assert trainer.step == 8


class Texts(keras.Model):
    """A model that captures a string, which XLA doesn't have."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones")
        self.texts = tf.constant(["a", "b"])

    def call(self, batch, training=False):
        same = tf.equal(self.texts, "a")
        return self.w * tf.reduce_mean(batch["x"]) * tf.reduce_sum(tf.cast(same, tf.float32))


def trainer_of_texts(strategy, jit):
    with strategy.scope():
        model, optimizer = Texts(), keras.optimizers.SGD(0.1)
    return tfloss.Trainer(model, optimizer, strategy=strategy, jit=jit, default_hooks=False)


@pytest.mark.parametrize("count", [1, 2])
def test_strings_in_a_batch_are_refused_before_anything_is_compiled(count, replicas, monkeypatch):
    monkeypatch.setattr(modes, "Engine", None)
    batch = {"x": tf.ones([4]), "names": {"path": tf.constant(list("abcd"))}}
    data = tf.data.Dataset.from_tensors(batch).repeat()
    with pytest.raises(DataError, match=r"jit=True.*batch\['names'\]\['path'\] holds strings"):
        trainer_of_texts(replicas(count), True).train(data, 2)
    ragged = data.map(lambda one: {**one, "names": tf.ragged.constant([["a"], [], [], []])})
    with pytest.raises(DataError, match=r"batch\['names'\] holds strings"):
        trainer_of_texts(replicas(count), True).train(ragged, 2)


@pytest.mark.parametrize(("count", "jit"), [(1, True), (1, "loop"), (2, True)])
def test_strings_that_a_model_captures_are_refused_with_their_line(count, jit, replicas):
    with pytest.raises(ModelError, match=r"no tensors of type string.*mode_runner.py:\d+, in call"):
        trainer_of_texts(replicas(count), jit).train(rows([1.0, 2.0], 2), 2)


def test_auto_takes_the_graph_where_strings_would_enter_xla(patient):
    trainer = trainer_of_texts(tf.distribute.get_strategy(), "auto")
    trainer.train(rows([1.0, 3.0], 2), 60)
    assert trainer.mode == "graph"
    assert float(trainer.model.w.numpy()) == pytest.approx(1 - 60 * 0.1 * 2.0)
