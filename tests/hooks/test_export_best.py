import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import NO_DATA, Accuracy
from tfloss.common.checksums import tree_checksums
from tfloss.errors import ExportError
from tfloss.hooks import Evaluate, Every, ExportBest


def trainer_of(make_trainer, tmp_path, values, hook, **options):
    results = {step: {"accuracy": value} for step, value in enumerate(values, 1)}
    hooks = [Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=1)), hook]
    return make_trainer(hooks, workdir=tmp_path, results=results, **options)


class Exports:
    """An export function that writes the step it was called at."""

    def __init__(self):
        self.steps = []

    def __call__(self, model, path):
        self.steps.append(self.trainer.step)
        path.mkdir()
        (path / "step").write_text(str(self.trainer.step))


@pytest.mark.parametrize(
    ("mode", "values", "steps"),
    [
        ("max", [0.5, 0.4, 0.7, 0.7, 0.8], [1, 3, 5]),
        ("min", [0.5, 0.4, 0.7, 0.4, 0.3], [1, 2, 5]),
        ("max", [float("nan"), 0.4, float("inf"), 0.5, 0.1], [2, 4]),
    ],
)
def test_it_exports_at_each_improvement_and_keeps_the_best(
    make_trainer, tmp_path, mode, values, steps
):
    export = Exports()
    hook = ExportBest("val/accuracy", mode, export=export)
    export.trainer = trainer = trainer_of(make_trainer, tmp_path, values, hook)
    trainer.train(5)
    assert export.steps == steps
    assert (tmp_path / "export/step").read_text() == str(steps[-1])
    best = {"metric": "val/accuracy", "mode": mode, "step": steps[-1]}
    assert hook.state == {**best, "best": values[steps[-1] - 1]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "export.best.json"]
    described = json.loads((tmp_path / "export.best.json").read_text())
    del described["files"]
    assert described == {**best, "value": values[steps[-1] - 1]}


def test_a_resumed_run_keeps_a_better_export(make_trainer, tmp_path):
    values = [0.5, 0.9, 0.6, 0.95]
    states = [{}, {}]
    for stop, step, called in [(2, 0, [1, 2]), (4, 2, [4])]:
        export = Exports()
        hook = ExportBest("val/accuracy", export=export)
        export.trainer = trainer = trainer_of(make_trainer, tmp_path, values, hook)
        trainer.restore(step, states)
        trainer.train(stop)
        states = json.loads(json.dumps([hook.state for hook in trainer.hooks]))
        assert export.steps == called


def test_the_best_value_of_another_metric_is_not_compared(make_trainer, tmp_path, messages):
    for state in ({"metric": "val/f1"}, {"metric": "val/accuracy", "mode": "min"}):
        hook = ExportBest("val/accuracy", export=lambda model, path: path.write_text(""))
        trainer = trainer_of(make_trainer, tmp_path, [0.5], hook)
        trainer.restore(0, [{}, {**state, "best": 0.9, "step": 7}])
        trainer.train(1)
        assert hook.state["best"] == 0.5
        assert f"the checkpoint's best value is that of {state['metric']!r}" in messages[-2]


def test_a_failing_export_leaves_the_last_one_intact(make_trainer, tmp_path):
    def export(model, path):
        path.write_text("first") if trainer.step == 1 else path.write_text("ha")
        if trainer.step == 2:
            raise OSError("disk full")

    hook = ExportBest("val/accuracy", export=export)
    trainer = trainer_of(make_trainer, tmp_path, [0.1, 0.2], hook)
    trainer.train(2)
    assert isinstance(trainer.error, OSError)
    assert (tmp_path / "export").read_text() == "first"
    assert (hook.state["best"], hook.state["step"]) == (0.1, 1)
    assert json.loads((tmp_path / "export.best.json").read_text())["step"] == 1


def test_by_default_the_best_weights_are_saved(make_trainer, tmp_path):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    trainer = trainer_of(
        make_trainer, tmp_path, [0.1, 0.9, 0.5], ExportBest("val/accuracy"), model=model
    )
    trainer.on_step = lambda step: model.set_weights([np.full([2, 1], step), np.zeros([1])])
    trainer.train(3)
    model.load_weights(tmp_path / "export/best.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], [[2], [2]])


@pytest.mark.promise(33)
def test_weights_that_are_not_finite_are_not_exported(make_trainer, tmp_path):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, name="dense")], name="net")
    trainer = trainer_of(
        make_trainer, tmp_path, [0.1, 0.9], ExportBest("val/accuracy"), model=model
    )
    trainer.on_step = lambda step: model.set_weights(
        [np.full([2, 1], [1, np.inf][step - 1]), np.zeros([1])]
    )
    trainer.train(2)
    assert isinstance(trainer.error, ExportError)
    assert "not exporting the model of step 2: NaN or infinite values in '" in str(trainer.error)
    assert "dense/kernel'. An update" in str(trainer.error)
    model.load_weights(tmp_path / "export/best.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], [[1], [1]])


def test_an_export_that_writes_elsewhere_is_an_error(make_trainer, tmp_path):
    hook = ExportBest("val/accuracy", export=lambda model, path: None)
    trainer = trainer_of(make_trainer, tmp_path, [0.1], hook)
    trainer.train(1)
    assert "wrote nothing at its path" in str(trainer.error)


def test_it_needs_a_path(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="Give the Trainer a workdir"):
        make_trainer([ExportBest("val/losses/total", "min")]).begin(1)
    make_trainer([ExportBest("val/losses/total", "min", path=tmp_path / "x")]).begin(1)


def test_what_was_exported_is_printed(make_trainer, tmp_path, messages):
    hook = ExportBest("val/accuracy", export=lambda model, path: path.write_text(""))
    trainer_of(make_trainer, tmp_path, [0.5, 0.4, 0.75], hook).train(3)
    assert messages == [
        f"step {step} has the highest val/accuracy so far, {value}: exported to {tmp_path}/export"
        for step, value in [(1, 0.5), (3, 0.75)]
    ]


def test_a_value_of_an_earlier_step_is_not_exported(make_trainer, tmp_path):
    """With log_every_step=True the values of several steps are logged after the last of them."""
    export = Exports()
    hook = ExportBest("losses/total", export=export)
    export.trainer = trainer = make_trainer([hook], workdir=tmp_path)
    trainer.begin(3)
    trainer.step = 3
    for step, value in [(1, 0.5), (2, 0.1), (3, 0.4)]:
        trainer.log(step, {"losses/total": value})
    assert export.steps == [3] and hook.state["best"] == 0.4


@pytest.mark.parametrize("what", ["directory", "file", "link", "SavedModel"])
def test_what_somebody_else_wrote_is_refused_before_the_first_step(make_trainer, tmp_path, what):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    path = tmp_path / "export"
    if what == "file":
        path.write_text("mine")
    elif what == "link":
        path.symlink_to(mine)
    else:
        mine.rename(path)
        (path / "saved_model.pb").write_bytes(b"" * (what == "SavedModel"))
    before = tree_checksums(tmp_path)
    trainer = trainer_of(make_trainer, tmp_path, [0.5], ExportBest("val/accuracy"))
    with pytest.raises(ExportError, match="export is not exactly what tfloss wrote, so it is not"):
        trainer.begin(1)
    assert tree_checksums(tmp_path) == before


def test_an_export_that_somebody_changed_is_not_replaced(make_trainer, tmp_path):
    def train(values):
        export = Exports()
        hook = ExportBest("val/accuracy", export=export)
        export.trainer = trainer = trainer_of(make_trainer, tmp_path, values, hook)
        trainer.train(len(values))
        return trainer.error

    assert train([0.1]) is None
    (tmp_path / "export/notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="'notes.txt' was added"):
        train([0.2])
    (tmp_path / "export/notes.txt").unlink()
    (tmp_path / "export.best.json").write_text('{"best": "mine"}')
    with pytest.raises(ExportError, match="export.best.json is not a description that tfloss wr"):
        train([0.2])
    assert (tmp_path / "export.best.json").read_text() == '{"best": "mine"}'


def test_names_of_temporary_files_that_somebody_else_has_are_left_alone(make_trainer, tmp_path):
    for name in ("export.partial", "export.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    hook = ExportBest("val/accuracy", export=lambda model, path: path.write_text(path.name))
    trainer = trainer_of(make_trainer, tmp_path, [0.1, 0.2], hook)
    trainer.train(2)
    assert trainer.error is None and (tmp_path / "export").read_text() == "export"
    for name in ("export.partial", "export.old"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_the_inputs_of_a_savedmodel_are_an_export(make_trainer, tmp_path):
    model = keras.Sequential([keras.Input([2], name="x"), keras.layers.Dense(1)])
    hook = ExportBest("val/accuracy", export=tf.TensorSpec([None, 2], name="x"))
    trainer_of(make_trainer, tmp_path, [0.5], hook, model=model).train(1)
    served = tf.saved_model.load(tmp_path / "export").signatures["serving_default"]
    x = tf.constant([[1.0, 2.0]])
    np.testing.assert_allclose(served(x=x)["output"], model(x), rtol=1e-6)

    with pytest.raises(ExportError, match="must be a tf.TensorSpec.*got str"):
        ExportBest("val/accuracy", export="export")
