import keras
import numpy as np
import pytest

from tfloss.checkpoint import CheckpointDirectory, named_variables
from tfloss.errors import CheckpointError
from tfloss.warm_start import load_weights


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


def test_no_checkpoint_or_no_variables(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_weights(_model(["a"]), tmp_path)
    with pytest.raises(CheckpointError, match="no variables yet"):
        load_weights(keras.Sequential([keras.layers.Dense(1)]), tmp_path)
