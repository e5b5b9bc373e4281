import json
import sys

import keras
import tensorflow as tf
from tensorboard.plugins.hparams import plugin_data_pb2

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import TensorBoard
from tfloss.hooks.run_description import recipe


def _events(path):
    for file in sorted(path.glob("events.out.tfevents*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                yield event.step, value


def test_a_run_has_its_recipe_its_command_and_its_hyperparameters(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--name=a b"])
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.5, 0.25])
    (tmp_path / "config.json").write_text(json.dumps({"width": 8, "layers": [1, 2], "--seed": 3}))
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(rate, momentum=0.5), workdir=tmp_path,
        hooks=[TensorBoard()], default_hooks=False, clip_norm=2.0, jit=False,
    )  # fmt: skip
    trainer.train(rows([1.0, 2.0], 2).repeat(), steps=2)
    trainer.train(rows([1.0, 2.0], 2).repeat(), steps=3)
    texts = {}
    for step, value in _events(tmp_path / "train"):
        if value.metadata.plugin_data.plugin_name == "text":
            texts.setdefault(value.tag, []).append((step, tf.make_ndarray(value.tensor).item()))
    assert [step for step, _ in texts["recipe"]] == [0, 2]
    assert texts["command"][0][1] == f"    {sys.executable} train.py '--name=a b'".encode()
    found = json.loads(texts["recipe"][0][1])
    assert found["config"] == {"width": 8, "layers": [1, 2], "--seed": 3}
    assert found["optimizer"]["learning_rate"]["class_name"] == "PiecewiseConstantDecay"
    assert found["step"]["clip_norm"] == 2.0
    assert (found["batch_size"], found["steps"], found["replicas"]) == (2, 2, 1)

    (_, value), _ = _events(tmp_path)  # of two calls of `train`
    assert value.tag == "_hparams_/session_start_info"
    data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
    values = dict(data.session_start_info.hparams)
    assert values["width"].number_value == 8
    assert values["optimizer.momentum"].number_value == 0.5
    assert values["optimizer.learning_rate.class_name"].string_value == "PiecewiseConstantDecay"
    assert values["step.clip_norm"].number_value == 2.0


def test_an_optimizer_without_a_config_is_described_by_its_numbers(make_trainer):
    class Own(keras.optimizers.SGD):
        def get_config(self):
            raise NotImplementedError

    trainer = make_trainer()
    trainer.begin(4)
    trainer.train_step.optimizers = {"a": Own(0.5, momentum=0.25), "b": keras.optimizers.SGD(0.5)}
    found = recipe(trainer)["optimizer"]
    assert (found["a"]["class"], found["a"]["momentum"]) == ("Own", 0.25)
    assert found["b"]["learning_rate"] == 0.5
