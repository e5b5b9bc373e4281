"""Sends the logged scalars to Weights & Biases.

    WandB("digits", name="first")                      # pip install 'tfloss[wandb]'

A resumed run continues the same run.
"""

from collections.abc import Mapping
from typing import Any

from tfloss.hooks.tracker import Logs, Tracker, tracker_package


class WandB(Tracker, own=True):
    """Logs all scalars to a run of Weights & Biases. Host.

    A resumed run continues the run that it had before. If training starts at step 0, it gets a new
    run. If a run is active (`wandb.init()` in the script, or an agent of a sweep), it is used, and
    not finished. What wandb had not sent when the process was killed is sent again, from
    `metrics.jsonl` in the workdir.

    `WANDB_MODE=offline` writes to the workdir only. There, each start of the script has a folder of
    its own, of the same run, and the newest one holds all values: `wandb sync` that one.

    Args:
      project: Name of the project. None: the choice of wandb, as by WANDB_PROJECT.
      params: `{name: value}` for the config of the run. Flags of a script are added.
      flush_seconds: Longest time until a value is sent, if the calls of the step are shorter.
      **init: Further arguments of `wandb.init`, such as name, group, tags, entity.

    Raises:
      ImportError: wandb is not installed.
      TypeError: `init` has `id` or `resume`, which the hook chooses.
      wandb.errors.Error: Before the first step: the server can't be reached, or needs a login.
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        flush_seconds: float = 5.0,
        **init: Any,
    ):
        if wrong := {"id", "resume"}.intersection(init):
            raise TypeError(
                f"WandB({min(wrong)}=...): the hook chooses it, so that a resumed run "
                "continues its run. To log to another one, call wandb.init(...) before training."
            )
        super().__init__(flush_seconds, params)
        self._wandb = tracker_package("wandb")
        self._init = {"project": project, **init}
        self._active = False  # whether the script has started the run

    def open_run(self, run_id: str | None) -> str:
        """Opens the run, or creates it, and returns its id."""
        active = self._wandb.run
        self._active = active is not None
        if active is None:
            workdir = self.trainer.workdir
            if workdir is not None:
                self._init = {"dir": str(workdir), "name": workdir.name} | self._init
            active = self._wandb.init(id=run_id, resume="allow", **self._init)
        self._run = active
        return str(active.id)

    def received(self) -> int:
        """Returns the last step that the server has; offline, this folder has none yet."""
        return int(self._run.step) - 1

    def send(self, logs: Logs) -> None:
        """Hands logs over to the process that sends them."""
        for step, _, scalars in logs:
            self._run.log(scalars, step=step)

    def send_params(self, params: Mapping[str, Any]) -> None:
        """Adds parameters to the config of the run."""
        self._run.config.update(dict(params), allow_val_change=True)

    def close_run(self, status: str) -> None:
        """Finishes the run, unless the script has started it."""
        if not self._active:
            self._run.finish(exit_code=0 if status == "finished" else 1)
