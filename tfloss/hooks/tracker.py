"""What hooks for experiment trackers share: one run of theirs for one run of tfloss. Host code.

A tracker's server can't remove values. So a file in the workdir says which run of the tracker this
is, and what was sent. A resumed run continues that run, and sends nothing twice.
"""

import contextlib
import importlib
import json
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfloss.common.nested_diff import flatten
from tfloss.common.replacement import replace_file
from tfloss.errors import Preempted
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.summary import Summary

_MAX_PENDING = 100_000  # logs that wait for a server that can't be reached

Logs = list[tuple[int, float, dict[str, float]]]
"""Step, time in seconds since 1970, and `{tag: value}`."""


def tracker_package(name: str) -> Any:
    """Imports the package of a tracker.

    Raises:
      ImportError: It is not installed. The message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} can't be imported ({error}). Install it: pip install 'tfloss[{name}]'."
        ) from None


class Tracker(Hook, ABC):
    """Sends the logged scalars to an experiment tracker. Host.

    Values are sent every `flush_seconds`, before a checkpoint is written, and at the end. If the
    server can't be reached during training, a warning says so, and the values are sent later. The
    flags of a script (`config.json` in the workdir) are sent as parameters.

    Args:
      flush_seconds: Longest time until a value is sent, if the calls of the step are shorter.
      params: `{name: value}` of further parameters.
    """

    chief_only = True
    async_logs = True

    def __init__(self, flush_seconds: float, params: Mapping[str, Any] | None):
        self.every = Every(seconds=flush_seconds)
        self._params = dict(params or {})
        self._pending: Logs = []
        self._sent: dict[str, Any] = {}  # the run's id, the last step that was sent, its names
        self._config_sent = self._ended = self._warned = False

    @abstractmethod
    def open_run(self, run_id: str | None) -> str:
        """Opens the tracker's run, or a new one for None.

        Returns:
          The id of the run.
        """

    def received(self) -> int | None:
        """Returns the last step that the open run has, -1 for none, or None if nobody knows.

        A tracker that buffers values loses them if the process is killed. What it lacks is sent
        again, from `metrics.jsonl`.
        """
        return None

    @abstractmethod
    def send(self, logs: Logs) -> None:
        """Sends logs. After an error it is called again with the same ones."""

    @abstractmethod
    def send_params(self, params: Mapping[str, Any]) -> None:
        """Sends parameters by name: numbers, texts, and lists of them."""

    @abstractmethod
    def close_run(self, status: str) -> None:
        """Ends the run: "finished", "killed" or "failed"."""

    def before_train(self) -> None:
        """Opens the run of the workdir if training resumes, or else a new one.

        If training goes back to an older checkpoint, it is a new one, since the values of later
        steps can't be removed from a server.
        """
        start, path = self.trainer.run.start, self._path
        if start == 0 or self.trainer.run.rewound:
            self._sent, self._pending = {}, []
        elif not self._sent and path is not None and path.exists():
            self._sent = json.loads(path.read_text())
        self._ended = self._config_sent = False
        run_id = self.open_run(self._sent.get("run"))
        if run_id != self._sent.get("run"):
            self._sent = {"run": run_id, "step": -1, "names": []}
            self._write_sent()
        if (received := self.received()) is not None:
            self._sent |= {"step": received, "names": None}
            self._pending = _logged_before(self.trainer, received)
        if self._params:
            self.send_params(self._params)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Keeps the values that were not sent yet, until the next flush."""
        last, names = self._sent["step"], self._sent["names"]
        if step > last or (step == last and names is not None):
            new = {k: float(v) for k, v in scalars.items() if step > last or k not in names}
            if new:
                self._pending.append((step, time.time(), new))
        if self._ended:  # a hook after this one in the list logs at the end
            self._flush()

    def after_step(self, step: int) -> None:
        """Sends the pending values."""
        self._flush()

    def before_save(self, step: int) -> None:
        """Sends the pending values, so that a checkpoint is not newer than the run."""
        self._flush()

    def after_train(self) -> None:
        """Sends the rest, and ends the run."""
        self._ended = True
        self._flush()
        if self._pending:
            warnings.warn(
                f"{type(self).__name__} has lost {len(self._pending)} logs, from step "
                f"{self._pending[0][0]} on: they could not be sent.",
                stacklevel=2,
            )
        error = self.trainer.error
        killed = isinstance(error, Preempted | KeyboardInterrupt)
        self._try(lambda: self.close_run(_status(error, killed)))

    @property
    def _path(self) -> Path | None:
        """The file that says what was sent."""
        workdir = self.trainer.workdir
        return None if workdir is None else workdir / f"{type(self).__name__.lower()}.json"

    def _flush(self) -> None:
        if not self._config_sent and self.trainer.step > self.trainer.run.start:
            self._config_sent = True
            config = self.trainer.workdir and self.trainer.workdir / "config.json"
            if config and config.exists():
                values = flatten(json.loads(config.read_text()), ".")
                self._try(lambda: self.send_params(values))
        if not self._pending or not self._try(lambda: self.send(self._pending)):
            del self._pending[:-_MAX_PENDING]
            return
        step = self._pending[-1][0]
        names = {name for at, _, values in self._pending if at == step for name in values}
        if step == self._sent["step"]:
            names.update(self._sent["names"] or ())
        self._sent |= {"step": step, "names": sorted(names)}
        self._pending = []
        self._write_sent()

    def _write_sent(self) -> None:
        if self._path is not None:
            replace_file(self._path, json.dumps(self._sent))

    def _try(self, send: Callable[[], None]) -> bool:
        """Calls a function that uses the network. An error is a warning, once.

        Returns:
          Whether it succeeded.
        """
        try:
            send()
        except Exception as error:  # noqa: BLE001 - training must not depend on a tracker
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{type(self).__name__} can't send: {type(error).__name__}: {error}. Training "
                    "continues, and the values are sent later.",
                    stacklevel=3,
                )
            return False
        self._warned = False
        return True


def _logged_before(trainer: TrainerProtocol, received: int) -> Logs:
    """Returns what was logged after a step and before this call, as far as MetricsFile wrote it."""
    path = trainer.workdir and trainer.workdir / "metrics.jsonl"
    start, again = trainer.run.start, trainer.run.pending
    found: Logs = []
    for line in path.read_text().splitlines() if path and path.exists() else []:
        with contextlib.suppress(ValueError, KeyError):  # a line that a killed process left
            row = json.loads(line)
            step, seconds = row.pop("step"), row.pop("time")
            if received < step <= start:
                names = sorted(row.keys() - again.get(step, ()))
                found.append((step, seconds, {name: float(row[name]) for name in names}))
    return found


def _status(error: BaseException | None, killed: bool) -> str:
    return "finished" if error is None else "killed" if killed else "failed"
