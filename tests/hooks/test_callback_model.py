import keras
import pytest

from tfloss.hooks.callback_model import GroupOptimizers, callback_attributes


def test_a_compiled_model_gets_its_own_optimizer_back():
    model, mine = keras.Sequential([keras.layers.Dense(1)]), keras.optimizers.SGD(0.1)
    model.compile("adam", "mse")
    before = model.optimizer
    with pytest.raises(KeyError), callback_attributes(model, {"optimizer": mine}):
        assert model.optimizer is mine and model.stop_training is False
        raise KeyError
    assert model.optimizer is before


def test_a_model_without_an_optimizer_has_none_afterwards():
    model = keras.Sequential([keras.layers.Dense(1)])
    with callback_attributes(model, {"optimizer": keras.optimizers.SGD(0.1)}):
        model.stop_training = True
        assert vars(model)["stop_training"]
    assert not hasattr(model, "optimizer") and not hasattr(model, "stop_training")


def test_groups():
    a, b = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2)
    groups = GroupOptimizers({"a": a, "b": b})
    assert [one.name for one in groups.optimizers] == ["a", "b"]
    groups.optimizers[1].learning_rate = 0.5
    assert float(b.learning_rate) == 0.5 and float(a.learning_rate) == pytest.approx(0.1)
    with pytest.raises(AttributeError, match=r"\(a, b\).*model.optimizer.learning_rate is not one"):
        groups.learning_rate = groups.learning_rate * 2
