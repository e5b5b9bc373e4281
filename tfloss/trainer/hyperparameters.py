"""Hyperparameters in a checkpoint: what the recipe says, and what a hook has set. Host code.

The recipe is the script: the values that it gives to optimizers and loss weights, before the first
call of `train` or between two calls. A value that was changed during a call, by a hook, is state.
A resumed run with the same recipe continues with that value. If the recipe has changed, its new
value applies, and a warning reports it. Calls that are already done set what they have set before,
so a script may also compute a value from the last one.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfloss.optimizers import hyperparameters
from tfloss.optimizers.groups import SINGLE
from tfloss.step.train_step import TrainStep

_UNKNOWN = object()


class Hyperparameters:
    """The hyperparameters of a training step, and what the recipe says about them.

    Args:
      train_step: The step.
    """

    def __init__(self, train_step: TrainStep):
        self._step = train_step
        self._recipe: dict[str, Any] = {}
        self._last: dict[str, Any] = {}  # at the end of the last call of `train`
        self._call: tuple[int, dict[str, Any]] | None = None  # its last step, values at its begin
        # {last step of a call: {name: [value before, value after]}}, if they differ.
        self._changed: dict[str, dict[str, list[Any]]] = {}

    def variables(self) -> dict[str, Any]:
        """Returns `{name: variable}` of those that are variables."""
        found = {
            f"{name}/{attribute}": variable
            for name, optimizer in self._step.optimizers.items()
            for attribute, variable in hyperparameters.scalar_variables(optimizer).items()
        }
        weights = self._step.loss_weights.variables()
        return found | {f"loss_weights/{name}": variable for name, variable in weights.items()}

    def values(self) -> dict[str, Any]:
        """Returns `{name: value}` of all of them: numbers, None, and arguments of groups. JSON."""
        found: dict[str, Any] = {
            f"{name}/{attribute}": number
            for name, optimizer in self._step.optimizers.items()
            for attribute, number in hyperparameters.numbers(optimizer).items()
        }
        for name, group in self._step.groups.items():
            found[f"{name}/rate_multipliers"] = dict(group.rate_multipliers)
            found[f"{name}/no_weight_decay"] = list(group.no_weight_decay)
        return found | {k: np.asarray(v.numpy()).item() for k, v in self.variables().items()}

    def begin_call(self, steps: int) -> None:
        """Begins a call of `train`: what changed since the last one was set by the script.

        Args:
          steps: The step that the call is to reach.
        """
        now = self.values()
        self._call = steps, now
        for name, value in now.items():
            if name not in self._recipe or self._last.get(name, _UNKNOWN) != value:
                self._recipe[name] = value
        self._last = now

    def end_call(self) -> None:
        """Ends a call of `train`."""
        self._last = self.values()
        if self._call is not None:
            steps, before = self._call
            pairs = {k: [before[k], v] for k, v in self._last.items() if k in before}
            if changed := {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}:
                self._changed[str(steps)] = changed
            self._call = None

    def repeat_call(self, steps: int, saved: Mapping[str, Any]) -> None:
        """Sets what hooks have set in an earlier call of `train`, which is already done.

        The script may compute its next values from these.

        Args:
          steps: The step that the call is to reach.
          saved: What `saved` returned.
        """
        now = self.values()
        for name, (before, after) in saved.get("changed", {}).get(str(steps), {}).items():
            if now.get(name, _UNKNOWN) == before:
                self._assign(name, after)

    def saved(self) -> dict[str, Any]:
        """Returns what checkpoints keep, as JSON values."""
        found = {"recipe": dict(self._recipe), "values": self.values()}
        return found | ({"changed": dict(self._changed)} if self._changed else {})

    def restore(self, saved: Mapping[str, Any], path: Path) -> None:
        """Restores what `saved` returned, in the call of `train` that it belongs to.

        Args:
          saved: The saved values.
          path: The checkpoint, for the warning.
        """
        changed = []
        self._changed = saved.get("changed", {}) | self._changed
        for name, now in self.values().items():
            before, value = saved["recipe"].get(name, _UNKNOWN), saved["values"].get(name)
            if before is _UNKNOWN:
                continue
            if before == self._recipe.get(name):
                if value != now:
                    self._assign(name, value)
            else:
                by_hook = "" if value == before else f" (and {_text(value)} when it was saved)"
                what = f"{_title(name)} was {_text(before)}{by_hook} in {path}"
                changed.append(f"The {what} and is {_text(now)} now.")
        self._last = self.values()
        if changed:
            warnings.warn(
                f"{' '.join(changed)} A value that the script gives is configuration, so the new "
                "one applies.",
                stacklevel=2,
            )

    def assign(self, values: Mapping[str, Any]) -> None:
        """Sets hyperparameters.

        Args:
          values: What `values` returned.
        """
        now = self.values()
        for name, value in values.items():
            if now.get(name, _UNKNOWN) != value:
                self._assign(name, value)

    def _assign(self, name: str, value: Any) -> None:
        variable = self.variables().get(name)
        if variable is None:
            optimizer, _, attribute = name.rpartition("/")
            setattr(self._step.optimizers[optimizer], attribute, value)
        else:
            dtype = variable.dtype if isinstance(variable, keras.Variable) else variable.dtype.name
            variable.assign(np.asarray(value, dtype))


def _title(name: str) -> str:
    """The name of a hyperparameter in a message: `learning rate of group 'd'`."""
    group, _, attribute = name.rpartition("/")
    argument = attribute in ("rate_multipliers", "no_weight_decay")
    title = f"argument {attribute}" if argument else attribute.replace("_", " ")
    return title if group == SINGLE else f"{title} of {group!r}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
