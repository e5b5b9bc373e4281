import keras
import pytest

from tests.toys import NO_DATA, Accuracy
from tfloss.hooks import Evaluate
from tfloss.hooks.callback_logs import epoch_logs, known_monitor_mode, result_logs


def test_steps_by_keras_names():
    means = {
        "losses/kl": 1.0,
        "losses/rpn/box": 2.0,
        "losses/loss": 4.0,
        "losses/total": 3.0,
        "weighted_losses/kl": 0.5,
        "learning_rate": 0.1,
        "accuracy": 0.9,
        "gradient_norm": 7.0,
    }
    assert epoch_logs(means) == {
        "loss": 3.0,
        "kl": 1.0,
        "rpn/box": 2.0,
        "accuracy": 0.9,
        "gradient_norm": 7.0,
    }


def test_results_by_keras_names():
    hooks = [Evaluate(NO_DATA, {}, name="val"), Evaluate(NO_DATA, {}, name="val/far", losses=True)]
    found = result_logs(
        {
            "val/losses/total": 1.0,
            "val/losses/kl": 2.0,
            "val/accuracy": 0.5,
            "val/far/losses/total": 3.0,
            "mine/auc/pr": 0.7,
        },
        hooks,
    )
    assert found == {
        "val_loss": 1.0,
        "val_kl": 2.0,
        "val_accuracy": 0.5,
        "val/far_loss": 3.0,
        "mine_auc/pr": 0.7,
    }


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val_accuracy", "max"), ("val_kl", "min"), ("val_loss", "min"), ("kl", "min"), ("x", None)],
)
def test_the_direction_of_a_metric(monitor, mode):
    hooks = [Evaluate(NO_DATA, {"accuracy": Accuracy()}, losses=True)]
    callback = keras.callbacks.EarlyStopping(monitor)
    assert known_monitor_mode(callback, hooks, ["losses/kl"]) == mode
    given = keras.callbacks.EarlyStopping(monitor, mode="max")
    assert known_monitor_mode(given, hooks, ["losses/kl"]) is None
    assert known_monitor_mode(keras.callbacks.History(), hooks) is None
