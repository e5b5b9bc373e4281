"""Sends the logged scalars to MLflow.

    MLflow("digits")                                   # pip install 'tfloss[mlflow]'

A resumed run continues the same run of MLflow.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from tfloss.hooks.tracker import Logs, Tracker, tracker_package

_MAX_METRICS, _MAX_PARAMS = 1000, 100  # in one request
_MAX_VALUE = 500  # characters of a parameter that all versions of the server take
_DEFAULT_EXPERIMENT = "0"
_NOT_IN_NAMES = re.compile(r"[^\w/\-. :]")
_STATUS = {"finished": "FINISHED", "killed": "KILLED", "failed": "FAILED"}


class MLflow(Tracker, own=True):
    """Logs all scalars to a run of MLflow. Host.

    A resumed run continues the run that it had before, and sends nothing twice. If training starts
    at step 0, it gets a new run. If a run is active (`with mlflow.start_run():`), it is used, and
    not ended. Values are sent every `flush_seconds`. If the server fails during training, a warning
    says so, and they are sent later. Characters that MLflow doesn't allow in names become "_".

    Args:
      experiment: Name of the experiment. None: MLflow's own choice, as by MLFLOW_EXPERIMENT_NAME.
      tracking_uri: Address of the server, or "sqlite:///runs.db". None: MLflow's own choice.
      run_name: Name of a new run. None: the name of the workdir.
      params: `{name: value}` of parameters of a new run. Flags of a script are added.
      flush_seconds: Longest time until a value is sent, if the calls of the step are shorter.

    Raises:
      ImportError: MLflow is not installed.
      mlflow.exceptions.MlflowException: Before the first step: the server can't be reached.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        flush_seconds: float = 5.0,
    ):
        super().__init__(flush_seconds, params)
        self._mlflow = tracker_package("mlflow")
        self._experiment, self._uri, self._run_name = experiment, tracking_uri, run_name
        self._active = False  # whether the script has started the run
        # The address may hold a password, and checkpoints hold the arguments.
        self.arguments = {k: v for k, v in self.arguments.items() if k != "tracking_uri"}

    def open_run(self, run_id: str | None) -> str:
        """Opens the run, or creates it, and returns its id."""
        mlflow, uri = self._mlflow, self._uri
        self._client = mlflow.MlflowClient(tracking_uri=uri or mlflow.get_tracking_uri())
        active = mlflow.active_run()
        self._active = active is not None
        if active is not None:
            self._run = active.info.run_id
        elif run_id is not None:
            self._run = run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            workdir = self.trainer.workdir
            name = self._run_name or (None if workdir is None else workdir.name)
            self._run = self._client.create_run(self._experiment_id(), run_name=name).info.run_id
        return self._run

    def send(self, logs: Logs) -> None:
        """Sends logs, in as few requests as MLflow allows."""
        metric = self._mlflow.entities.Metric
        metrics = [
            metric(_name(tag), value, int(seconds * 1000), step)
            for step, seconds, scalars in logs
            for tag, value in scalars.items()
        ]
        for first in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MAX_METRICS])

    def send_params(self, params: Mapping[str, Any]) -> None:
        """Sends parameters that the run doesn't have. MLflow never changes one."""
        known = self._client.get_run(self._run).data.params
        param = self._mlflow.entities.Param
        new = [
            param(_name(key), str(value)[:_MAX_VALUE])
            for key, value in params.items()
            if _name(key) not in known
        ]
        for first in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(self._run, params=new[first : first + _MAX_PARAMS])

    def close_run(self, status: str) -> None:
        """Ends the run, unless the script has started it."""
        if not self._active:
            self._client.set_terminated(self._run, _STATUS[status])

    def _experiment_id(self) -> str:
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if self._experiment is None and (number := os.environ.get("MLFLOW_EXPERIMENT_ID")):
            return number  # mlflow.set_experiment sets it, too
        if name is None:
            return _DEFAULT_EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._client.create_experiment(name)


def _name(tag: str) -> str:
    return _NOT_IN_NAMES.sub("_", tag)
