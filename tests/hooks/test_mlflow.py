"""Against a real local store of MLflow, with real processes that are killed."""

import os
import signal
import subprocess
import sys

import pytest

from tfloss.hooks import MLflow

mlflow = pytest.importorskip("mlflow")

SCRIPT = """
import os, signal, sys
import keras, tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook, MLflow, SaveCheckpoint

class Kill(Hook):
    every = Every(steps=1)
    def after_step(self, step):
        if step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

tracker = MLflow("lines", tracking_uri=sys.argv[2], params={"rate": 0.1}, flush_seconds=0.001)
hooks = [tracker, SaveCheckpoint(Every(steps=4)), Kill()]
trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), hooks=hooks, workdir=sys.argv[1],
                         log_every=2, jit=False, default_hooks=False)
trainer.train(rows([1.0], 1), 12)
"""


def run(*arguments):
    environment = os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_a_killed_run_is_one_run_with_every_value_once(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path}/mlruns" if store == "file" else f"sqlite:///{tmp_path}/runs.db"
    workdir = tmp_path / "lines 1"
    killed = run(workdir, uri, 7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("lines").experiment_id])
    assert found.info.status == "RUNNING"
    assert found.data.tags["mlflow.runName"] == "lines 1"
    done = run(workdir, uri, -1)
    assert done.returncode == 0, done.stderr
    (found,) = client.search_runs([client.get_experiment_by_name("lines").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"rate": "0.1"}
    history = client.get_metric_history(found.info.run_id, "losses/total")
    # w falls by 0.1 a step, and a log is the mean of two steps
    assert [(one.step, round(one.value, 4)) for one in history] == [
        (step, pytest.approx(1.15 - 0.1 * step, abs=1e-4)) for step in range(2, 13, 2)
    ]


def test_an_active_run_is_used_and_not_ended(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as active:
        hook = MLflow()
        assert hook.open_run(None) == active.info.run_id
        hook.send([(3, 10.5, {"a(b)": 2.0, "c": float("nan")})])
        hook.send_params({"list": [1, 2], "text": "x" * 1000})
        hook.send_params({"text": "other"})
        hook.close_run("failed")
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_run(active.info.run_id)
        assert found.info.status == "RUNNING"
        assert found.data.metrics["a_b_"] == 2.0 and found.data.metrics["c"] != 0
        assert found.data.params == {"list": "[1, 2]", "text": "x" * 500}
        (metric,) = client.get_metric_history(active.info.run_id, "a_b_")
        assert (metric.step, metric.timestamp) == (3, 10500)


def test_no_password_is_in_the_arguments_that_checkpoints_hold():
    assert "tracking_uri" not in MLflow("x", tracking_uri="https://me:secret@host").arguments
