"""`Run.train_and_evaluate` does what `--mode` and the other flags ask for."""

import inspect
import json
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss import app
from tfloss.errors import CheckpointError, ExportError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

EVERY = tfloss.Every(steps=2)


class Slope(keras.Model):
    """Fits y = w x; each step of SGD(0.25) on x = y = 1 halves the distance of w from 1."""

    def __init__(self):
        super().__init__(name="slope")
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")

    def call(self, batch, training=False):
        y = self.w * batch["x"]
        return {"error": tf.reduce_mean((y - 1.0) ** 2)} if training else {"y": y}


class LastValue:
    """A metric: the prediction for the last example."""

    mode = "max"

    def reset(self):
        self.value = float("nan")

    def update(self, batch, predictions):
        self.value = float(predictions["y"][-1])

    def result(self):
        return self.value


class Steps(tfloss.Hook):
    """Notes the steps that it is called at."""

    every = EVERY

    def __init__(self):
        self.seen = []

    def after_step(self, step):
        self.seen.append(step)


def _data():
    train = tf.data.Dataset.from_tensors({"x": tf.ones([4])}).repeat()
    return train, tf.data.Dataset.from_tensors({"x": tf.ones([2])})


def _export(model, path):
    path.mkdir()
    (path / "w.txt").write_text(str(float(model.w)))


@pytest.fixture
def start(parse):
    """`start(*flags, **arguments)` runs a small script up to 6 steps: the run and its results."""

    def script(*flags, trainer=None, **arguments):
        run = app.prepare(parse("--nojit", *flags))
        with run.strategy.scope():
            model, optimizer = Slope(), keras.optimizers.SGD(0.25)
        options = {"log_every": 2, **(trainer or {})}
        given = {"steps": 6, "every": EVERY, "best": "val/last", "export": _export, **arguments}
        results = run.train_and_evaluate(
            run.trainer(model, optimizer, **options), *_data(), {"last": LastValue()}, **given
        )
        return run, results

    return script


def _values(run, name):
    """`{step: value}` of one name in metrics.jsonl."""
    rows = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[name] for row in rows if name in row}


def _checkpoints(run):
    return sorted(path.name for path in (run.workdir / "checkpoints").iterdir())


def test_train_and_eval_evaluates_beside_training_and_exports_the_best(start, capsys):
    hook = Steps()
    run, results = start(hooks=[hook], losses=True)

    assert results["last"] == 1 - 0.5**6
    assert results["losses/total"] == pytest.approx(0.25**6)
    assert _values(run, "val/last") == {2: 1 - 0.5**2, 4: 1 - 0.5**4, 6: 1 - 0.5**6}
    assert set(_values(run, "val/losses/total")) == {2, 4, 6}
    assert hook.seen == [2, 4, 6]
    assert _checkpoints(run) == ["step_00000002", "step_00000004", "step_00000006"]
    assert (run.workdir / "export" / "w.txt").read_text() == str(1 - 0.5**6)
    printed = capsys.readouterr().out
    assert "export  (val/last 0.984375, step 6)\n" in printed
    assert "val/last 0.98438  val/losses/error 0.00024414  val/losses/total 0.0002" in printed
    assert printed.endswith(run.where() + "\n")


def test_the_test_data_select_nothing_and_are_evaluated_once_at_the_end(start, capsys, monkeypatch):
    """The inputs of the test data are 2, so the prediction on them is 2 w."""
    test, seen = tf.data.Dataset.from_tensors({"x": 2.0 * tf.ones([3])}), []
    evaluate = tfloss.Trainer.evaluate

    def counted(trainer, data, *args, **options):
        seen.append(("test" if data is test else "val", trainer.step))
        return evaluate(trainer, data, *args, **options)

    monkeypatch.setattr(tfloss.Trainer, "evaluate", counted)

    run, results = start(test_data=test, best_mode="min")

    assert results == {"last": 2 - 2 * 0.5**6}
    assert seen == [("val", 2), ("val", 4), ("val", 6), ("test", 6)]
    assert _values(run, "val/last") == {2: 1 - 0.5**2, 4: 1 - 0.5**4, 6: 1 - 0.5**6}
    assert _values(run, "test/last") == {6: 2 - 2 * 0.5**6}
    assert (run.workdir / "export" / "w.txt").read_text() == str(1 - 0.5**2)  # best by val/last
    assert "test/last 1.9688\n" in capsys.readouterr().out

    _, again = start(test_data=test)  # has nothing left to train
    _, other = start("--mode=eval", "--restore=4", test_data=test)
    assert (again, other) == (results, {"last": 2 - 2 * 0.5**4})
    assert capsys.readouterr().out.count("test/last") == 2
    assert start("--mode=eval", "--follow", test_data=test)[1] == {"last": 1 - 0.5**6}


def test_the_direction_of_the_best_metric_can_be_given(start):
    run, _ = start(best_mode="min")

    assert (run.workdir / "export" / "w.txt").read_text() == str(1 - 0.5**2)


def test_train_does_not_evaluate(start, capsys):
    hook = Steps()
    run, results = start("--mode=train", hooks=[hook])

    assert results == {}
    assert _values(run, "val/last") == {}
    assert hook.seen == [2, 4, 6]
    assert _checkpoints(run) == ["step_00000002", "step_00000004", "step_00000006"]
    assert not (run.workdir / "export").exists()
    printed = capsys.readouterr().out
    assert "val/" not in printed and printed.endswith(run.where() + "\n")


def test_eval_evaluates_the_newest_checkpoint(start, capsys):
    run, _ = start("--mode=train")
    files = sorted(run.workdir.rglob("*"))
    capsys.readouterr()

    again, results = start("--mode=eval")

    assert results == {"last": 1 - 0.5**6}
    assert sorted(run.workdir.rglob("*")) == files
    assert capsys.readouterr().out == f"val/last 0.98438\n{again.where()}\n"


def test_a_chosen_checkpoint(start):
    """w is 1 - 0.5**step; the metric, which is w, is best at the end."""
    start()
    for flag, step in (("4", 4), ("val/last", 6), ("best", 6)):
        _, results = start("--mode=eval", f"--restore={flag}")
        assert results == {"last": 1 - 0.5**step}
    run, _ = start("--mode=export", "--restore=2")
    assert (run.workdir / "export_step_2" / "w.txt").read_text() == str(1 - 0.5**2)
    with pytest.raises(CheckpointError, match="There are checkpoints of: 2, 4, 6"):
        start("--mode=eval", "--restore=3")
    with pytest.raises(ValueError, match="--restore=best: the script names no metric"):
        start("--mode=eval", "--restore=best", best=None)
    with pytest.raises(ValueError, match="--restore=4 chooses the checkpoint that --mode=eval"):
        start("--restore=4")


def test_eval_follow_evaluates_each_checkpoint(start, capsys):
    run, _ = start("--mode=train")
    capsys.readouterr()

    for flag, printed in [("--follow=newest", "step 2  val/last 0.75\n"), ("--follow", "")]:
        again, results = start("--mode=eval", flag)

        assert results == {"last": 1 - 0.5**6}
        out = capsys.readouterr().out
        assert out.endswith(f"{printed}val/last 0.98438\n{again.where()}\n")
    lines = (run.workdir / "eval/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 4, 2]


def test_export_exports_the_newest_checkpoint(start, capsys):
    start("--mode=train")
    capsys.readouterr()

    run, results = start("--mode=export")

    assert results == {}
    assert (run.workdir / "export_step_6" / "w.txt").read_text() == str(1 - 0.5**6)
    assert capsys.readouterr().out == run.where() + "\n"


def test_the_inputs_of_a_savedmodel_are_an_export(start):
    specs = {"x": tf.TensorSpec([None])}
    run, _ = start(export=specs)
    start("--mode=export", export=specs)

    for folder in ("export", "export_step_6"):
        served = tf.saved_model.load(run.workdir / folder).signatures["serving_default"]
        assert served(x=tf.constant([2.0]))["y"].numpy() == [2 * (1 - 0.5**6)]
    with pytest.raises(ExportError, match="Input 'x' .* must be a tf.TensorSpec"):
        start(export={"x": [None]})


def test_a_model_s_own_metrics_are_used_if_none_are_given(parse):
    made = []

    class Owner(Slope):
        def evaluation_metrics(self):
            made.append(LastValue())
            return {"last": made[-1]}

    def script(*flags):
        run = app.prepare(parse("--nojit", *flags))
        trainer = run.trainer(Owner(), keras.optimizers.SGD(0.25))
        options = {"steps": 6, "every": EVERY, "best": "val/last", "losses": True}
        return run, run.train_and_evaluate(trainer, *_data(), **options)

    run, results = script()
    assert results["last"] == 1 - 0.5**6 and results["losses/total"] == pytest.approx(0.25**6)
    assert set(_values(run, "val/last")) == {2, 4, 6}
    assert script("--mode=eval", "--follow")[1] == results
    assert len(made) == 2  # once for each script, so that an evaluation is traced only once


def test_export_needs_an_export_function(start):
    start("--mode=train")

    with pytest.raises(ValueError, match="--mode=export: give train_and_evaluate an `export`"):
        start("--mode=export", export=None)


@pytest.mark.parametrize("mode", ["eval", "export"])
def test_modes_that_do_not_train_need_a_checkpoint(start, mode, tmp_path):
    (tmp_path / "run").mkdir()

    with pytest.raises(CheckpointError, match="Train first"):
        start(f"--mode={mode}")


def test_the_flags_that_limit_a_run_apply(start):
    run, results = start("--max_steps=3", "--profile=1:2")

    assert results == {"last": 1 - 0.5**3}
    assert list(run.workdir.rglob("*.xplane.pb"))


def test_max_minutes_ends_the_run_after_a_checkpoint(start, tmp_path):
    with pytest.raises(SystemExit) as ended:
        start("--max_minutes=0.01", steps=10**9)

    assert ended.value.code == 124
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_overfitting_trains_on_the_first_batches_only(parse):
    run = app.prepare(parse("--nojit", "--overfit_batches=1", "--mode=train"))
    model, numbers = Slope(), tf.data.Dataset.range(1, 1000)
    data = numbers.map(lambda i: {"x": tf.cast([1 / i], tf.float32)})
    trainer = run.trainer(model, keras.optimizers.SGD(0.25))

    run.train_and_evaluate(trainer, data, data, steps=4, every=EVERY)

    np.testing.assert_allclose(model.w, 1 - 0.5**4)


def test_averages_are_evaluated_and_exported(start):
    run, results = start(ema=True, trainer={"ema": 0.5})
    start("--mode=export", ema=True, trainer={"ema": 0.5})

    assert results["last"] < 1 - 0.5**6
    assert _values(run, "val/last")[6] == results["last"]
    for folder in ("export", "export_step_6"):
        assert float((run.workdir / folder / "w.txt").read_text()) == results["last"]


def test_a_train_step_of_ones_own(start):
    class Half(tfloss.TrainStep):
        def step(self, batch):
            return self.minimize(lambda x: 0.5 * self.model(x, training=True)["error"], batch)

    _, results = start(trainer={"train_step": Half})

    np.testing.assert_allclose(results["last"], 1 - 0.75**6)


def test_the_lines_of_the_docstring_do_the_same(parse, tmp_path, capsys):
    docstring = inspect.getdoc(app.Run.train_and_evaluate)
    lines = textwrap.dedent(docstring.split("::\n\n")[1].split("\n\nArgs:")[0])
    method = """run.train_and_evaluate(
        trainer, train_data, eval_data, metrics,
        steps=steps, every=every, best="val/accuracy", export=export, hooks=hooks,
    )"""

    def outcome(code, *flags):
        workdir = tmp_path / str(code == method)
        run = app.prepare(parse("--nojit", f"--workdir={workdir}", *flags))
        hook, (train_data, eval_data) = Steps(), _data()
        names = {name: getattr(tfloss.hooks, name) for name in tfloss.hooks.__all__}
        names |= {"run": run, "steps": 6, "every": EVERY, "hooks": [hook], "export": _export}
        names |= {"train_data": train_data, "eval_data": eval_data}
        names |= {"metrics": {"accuracy": LastValue()}}
        names["trainer"] = run.trainer(Slope(), keras.optimizers.SGD(0.25), log_every=2)
        exec(code, names)
        printed = capsys.readouterr().out.replace(str(workdir), "")
        printed = [line for line in printed.splitlines() if not line.startswith("step ")]
        files = [p.relative_to(workdir) for p in workdir.rglob("*") if "tfevents" not in p.name]
        return printed, sorted(files), hook.seen

    for flags in (["--mode=train", "--max_steps=2"], [], ["--mode=eval"], ["--mode=export"]):
        expected = outcome(method, *flags)
        assert outcome(lines, *flags) == expected
        assert expected[0]
