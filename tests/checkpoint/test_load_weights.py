import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory, named_variables, saved_weights
from tfloss.checkpoint.load_weights import load_weights
from tfloss.checkpoint.selection import METRICS, saved_metrics
from tfloss.errors import CheckpointDeletedError, CheckpointError


def _model(names, units=2):
    keras.utils.clear_session(free_memory=False)
    model = keras.Sequential([keras.layers.Dense(units, name=n) for n in names], name="m")
    model.build((None, 2))
    for index, variable in enumerate(model.variables):
        variable.assign(np.full(variable.shape, index + 1.0))
    return model


@pytest.fixture
def workdir(tmp_path):
    model = {f"model/{k}": v for k, v in named_variables(_model(["encoder", "head"])).items()}
    other = {"optimizer/iteration": _model(["encoder"]).variables[0]}
    CheckpointDirectory(tmp_path / "checkpoints").save(5, {**model, **other})
    return tmp_path


def _values(model):
    return {v.path: float(v.numpy().flat[0]) for v in model.variables}


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step_00000005"])
def test_from_a_workdir_a_directory_or_a_checkpoint(workdir, where):
    model = _model(["encoder", "head"])
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    report = load_weights(model, workdir / where)
    assert list(_values(model).values()) == [1.0, 2.0, 3.0, 4.0]
    assert len(report.loaded) == 4 and not report.missing + report.unexpected + report.mismatched


@pytest.mark.parametrize("best", [None, "loss"])
def test_the_next_one_is_loaded_if_a_trainer_deletes_the_chosen_one(tmp_path, monkeypatch, best):
    """A checkpoint that was given is not replaced by another one."""
    model, files = _model(["encoder"]), CheckpointDirectory(tmp_path)
    for step in (1, 2, 3):
        for variable in model.variables:
            variable.assign(np.full(variable.shape, float(step)))
        values = {f"model/{k}": v for k, v in named_variables(model).items()}
        files.save(step, values, {METRICS: saved_metrics({"loss": 1 / step}, {"loss": "min"})})
    load_values, deleted = saved_weights.load_values, 3

    def load(path, names):
        files.delete(deleted)
        return load_values(path, names)

    monkeypatch.setattr(saved_weights, "load_values", load)
    load_weights(model, tmp_path, best=best)
    assert set(_values(model).values()) == {2.0} and files.steps() == [1, 2]
    for deleted, given in ((2, {"step": 2}), (1, {"path": files.at(1)})):
        with pytest.raises(CheckpointDeletedError, match=f"step_0000000{deleted}.*was deleted"):
            load_weights(model, **{"path": tmp_path, **given})
    assert set(_values(model).values()) == {2.0}


def test_strict_loads_nothing_that_does_not_fit(workdir):
    model = _model(["encoder", "other"])
    before = _values(model)
    with pytest.raises(CheckpointError, match="(?s)other/kernel.*head/kernel.*Nothing was loaded"):
        load_weights(model, workdir)
    assert _values(model) == before


def test_what_fits_is_loaded_and_the_rest_is_reported(workdir):
    model = _model(["encoder", "head"], units=2)
    other = keras.layers.Dense(3, name="head")
    model = keras.Sequential([model.layers[0], other, keras.layers.Dense(1, name="new")], name="m")
    model.build((None, 2))
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    report = load_weights(model, workdir, strict=False)
    assert [n.split("/")[-2:] for n in report.loaded] == [
        ["encoder", "kernel"],
        ["encoder", "bias"],
    ]
    assert len(report.mismatched) == 2 and len(report.missing) == 2 and not report.unexpected
    assert "2 variables loaded; missing: " in str(report)
    assert list(_values(model).values())[:2] == [1.0, 2.0]


def test_renaming_whole_components(workdir):
    prefix = next(iter(named_variables(_model(["encoder"])))).removesuffix("encoder/kernel")
    model = _model(["backbone", "head"])
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    load_weights(model, workdir, rename={f"{prefix}encoder": f"{prefix}backbone"})
    assert list(_values(model).values()) == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(CheckpointError):
        load_weights(model, workdir, rename={f"{prefix}enc": f"{prefix}backbone"})


def test_two_names_renamed_to_one(workdir):
    model = _model(["encoder", "head"])
    before = _values(model)
    prefix = next(iter(named_variables(model))).removesuffix("encoder/kernel")
    rename = {f"{prefix}encoder": f"{prefix}head"}
    with pytest.raises(
        CheckpointError, match="encoder/kernel' and '.*head/kernel', the same name, '"
    ):
        load_weights(model, workdir, strict=False, rename=rename)
    assert _values(model) == before
    swap = {f"{prefix}encoder": f"{prefix}head", f"{prefix}head": f"{prefix}encoder"}
    load_weights(model, workdir, rename=swap)
    assert list(_values(model).values()) == [3.0, 4.0, 1.0, 2.0]


class _Noisy(keras.Model):
    """One weight and, in one layer, several random generators."""

    def __init__(self, generators):
        super().__init__(name="m")
        self.w = self.add_weight(name="w", shape=())
        self.noise = keras.layers.Layer(name="noise")
        self.noise.seeds = [keras.random.SeedGenerator(i) for i in range(generators)]
        self.noise.random = tf.random.Generator.from_seed(generators)
        self.built = True


@pytest.mark.parametrize("there", [0, 1, 3])
def test_random_states_are_left_alone_however_many_there_are(there, tmp_path):
    saved = _Noisy(there)
    saved.w.assign(5.0)
    variables = {f"model/{k}": v for k, v in named_variables(saved).items()}
    CheckpointDirectory(tmp_path).save(1, variables)
    model = _Noisy(2)
    before = {name: v.numpy() for name, v in named_variables(model).items() if name != "m/w"}
    assert len(before) == 3
    report = load_weights(model, tmp_path)
    assert report.loaded == ["m/w"] and not report.missing + report.unexpected
    assert model.w.numpy() == 5.0
    for name, value in before.items():
        np.testing.assert_array_equal(named_variables(model)[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize("size", [0, 40])
def test_a_corrupt_checkpoint_is_an_error(size, workdir):
    model = _model(["encoder", "head"])
    before = _values(model)
    index = workdir / "checkpoints" / "step_00000005" / "variables.index"
    index.write_bytes(index.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="the checkpoint is corrupt"):
        load_weights(model, workdir)
    assert _values(model) == before


def test_every_replica_gets_the_value(workdir, replicas):
    strategy = replicas(2)
    with strategy.scope():
        layers = [keras.layers.Dense(2, name=name) for name in ("encoder", "head")]
        model = keras.Sequential(layers, name="m")
        model.build((None, 2))
    load_weights(model, workdir)
    for index, variable in enumerate(model.variables):
        for local in strategy.experimental_local_results(variable.value):
            assert local.numpy().flat[0] == index + 1.0


def test_no_checkpoint_or_no_variables(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_weights(_model(["a"]), tmp_path)
    with pytest.raises(CheckpointError, match="no variables yet"):
        load_weights(keras.Sequential([keras.layers.Dense(1)]), tmp_path)


def test_one_of_several_checkpoints(tmp_path):
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    for step, value in ((1, 0.7), (2, 0.9), (3, 0.8)):
        model = _model(["a"])
        model.layers[0].bias.assign([float(step)] * 2)
        variables = {f"model/{k}": v for k, v in named_variables(model).items()}
        metrics = {"val/accuracy": {"value": value, "mode": "max"}}
        directory.save(step, variables, {"metrics": metrics})
    model = _model(["a"])
    for wanted, step in (({"step": 1}, 1), ({"best": "val/accuracy"}, 2), ({}, 3)):
        for where in (tmp_path, directory.path):
            load_weights(model, where, **wanted)
            assert model.layers[0].bias.numpy()[0] == step
    for wanted, message in (
        ({"step": 4}, "There are checkpoints of: 1, 2, 3"),
        ({"best": "val/acuracy"}, "Did you mean 'val/accuracy'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, tmp_path, **wanted)
        with pytest.raises(CheckpointError, match="is no workdir with checkpoints"):
            load_weights(model, directory.at(1), **wanted)
    with pytest.raises(ValueError, match="give one of them"):
        load_weights(model, tmp_path, step=1, best="val/accuracy")


def test_every_path_that_cannot_be_loaded_is_named(tmp_path):
    model = _model(["a"])
    (tmp_path / "export").mkdir()
    for name in ("old.h5", "a.weights.json", "several/a.weights.h5", "several/b.keras"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    (tmp_path / "one").mkdir()
    model.save_weights(tmp_path / "one" / "w.weights.h5")
    for name, message in (
        ("", f"no checkpoint in .* There is an export: {tmp_path / 'export'}"),
        ("export", r"no checkpoint in .* load_weights reads checkpoints of tfloss, \*.weights"),
        ("missing", "missing/checkpoints: it does not exist"),
        ("old.h5", r"none of the files that load_weights reads.*use model.load_weights\(path\)"),
        ("a.weights.json", "none of the files that load_weights reads"),
        ("several", "several files of weights: 'a.weights.h5', 'b.keras'. Give one"),
        ("ckpt", "written by tf.train.Checkpoint. .*model.save_weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, tmp_path / name)
    with pytest.raises(CheckpointError, match="ema=True: only a checkpoint .*leave ema out"):
        load_weights(model, tmp_path / "one", ema=True)
