import json
import sys

import keras
import tensorflow as tf
from tensorboard.plugins.hparams import plugin_data_pb2

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Evaluate, Hook, TensorBoard
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
    assert found["optimizer"]["learning_rate"]["class"] == "PiecewiseConstantDecay"
    assert found["step"]["clip_norm"] == 2.0
    assert (found["batch_size"], found["steps"], found["replicas"]) == (2, 2, 1)

    session, again = _sessions(tmp_path / "train")  # of two calls of `train`
    assert session.group_name == f"{tmp_path.name}/train" == again.group_name
    values = dict(session.hparams)
    assert values["width"].number_value == 8
    assert values["optimizer.momentum"].number_value == 0.5
    assert values["optimizer.learning_rate.class"].string_value == "PiecewiseConstantDecay"
    assert values["step.clip_norm"].number_value == 2.0


def test_a_run_has_a_page_of_its_losses_and_variables(tmp_path):
    """It is read back from the event file, and is there once after a resume at the same step."""

    class Two(Line):
        def call(self, batch, training=False):
            found = super().call(batch, training=training)
            return {"fit": found["mean"], "size": found["mean"] ** 2} if training else found

    class Before(Hook):  # logs before the losses are known
        def before_train(self):
            self.trainer.log(self.trainer.step, {"own": 1.0})

    for _ in range(2):
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.5, 0.25])
        group = tfloss.Group(keras.optimizers.SGD(0.5), rate_multipliers={"*": 0.25})
        trainer = tfloss.Trainer(
            Two(), {"line": group}, workdir=tmp_path, loss_weights={"size": rate, "fit": 0.5},
            hooks=[TensorBoard(), Before()], default_hooks=False, jit=False,
        )  # fmt: skip
        trainer.train(rows([1.0, 2.0], 2), steps=2)
    pages = [
        tf.make_ndarray(value.tensor).item().decode()
        for _, value in _events(tmp_path / "train")
        if value.tag == "inspect"
    ]
    assert pages == ["\n".join(f"    {line}" for line in PAGE.format(tmp_path).splitlines())]


PAGE = """\
  model       line
  parameters  1 (1 trained)
  losses      fit, size
  optimizer   SGD
  batch       2 examples, on 1 replica
  workdir     {}

Losses
  loss  weight
  fit   0.5
  size  PiecewiseConstantDecay

Variables
  variable  shape   dtype    group  trainable  rate
  line/w    scalar  float32  line   yes        0.25"""


def _sessions(path):
    for _, value in _events(path):
        if value.tag == "_hparams_/session_start_info":
            content = value.metadata.plugin_data.content
            yield plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info


def _hparams_page(logdir):
    """`{row: {column: value}}` of the page HPARAMS, as TensorBoard computes it."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(logdir))
    runs.Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(logdir))
    page, request = backend_context.Context(TBContext(data_provider=provider)), RequestContext()
    content = page.hparams_metadata(request, "")
    found = page.experiment_from_metadata(request, "", True, content, [])
    query = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
        slice_size=10,
        include_metrics=True,
        col_params=[api_pb2.ColParams(metric=one.name) for one in found.metric_infos],
    )
    groups = list_session_groups.Handler(request, page, "", query).run().session_groups
    return {
        group.name: {value.name.tag: value.value for value in group.metric_values}
        for group in groups
    }


def test_the_hparams_page_has_the_metrics_of_each_run(tmp_path):
    """Whether TensorBoard is given the workdir or the directory of several workdirs."""
    workdir = tmp_path / "one"
    evaluation = Evaluate(rows([1.0, 2.0], 2).take(1), {}, losses=True)
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.0), workdir=workdir,
        hooks=[TensorBoard(), evaluation], default_hooks=False, jit=False,
    )  # fmt: skip
    trainer.train(rows([1.0, 2.0], 2).repeat(), steps=2)
    for logdir in (workdir, tmp_path):
        page = _hparams_page(logdir)
        assert set(page) == {"one/train", "one/val"}
        assert {"Losses/total", "Training/learning_rate"} < set(page["one/train"])
        assert page["one/val"]["Losses/total"] == page["one/train"]["Losses/total"] > 0


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
