"""Which mode a run has chosen, and where: `engine.json` in the workdir. Host code.

A resumed run takes the choice over if nothing has changed that it depends on, such as the machine.
"""

import dataclasses
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import tensorflow as tf

from tfloss.common.reading import read_json
from tfloss.common.replacement import replace_file
from tfloss.step.trace_options import Mode
from tfloss.step.train_step import TrainStep

TITLES: dict[Mode, str] = {
    "graph": "as a graph",
    "step": "with each step compiled by XLA",
    "loop": "with the whole loop compiled by XLA",
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an earlier run has chosen.

    Attributes:
      mode: The mode.
      rates: `{mode: steps per second}`, also of the graph.
      compiling: `{mode: seconds that compiling it took}`.
    """

    mode: Mode
    rates: Mapping[Mode, float]
    compiling: Mapping[Mode, float]

    @property
    def saving(self) -> float:
        """The fraction of a graph's time that the mode saves."""
        return 1.0 - self.rates["graph"] / self.rates[self.mode]

    @property
    def seconds_to_compile(self) -> float:
        """Seconds that compiling the mode took."""
        return self.compiling.get(self.mode, 0.0)

    @property
    def title(self) -> str:
        """The mode, in words."""
        return TITLES[self.mode]

    @property
    def why(self) -> str:
        """What the choice is based on, in words."""
        mine = rate_text(self.rates[self.mode])
        others = [f"{rate_text(v)} {TITLES[k]}" for k, v in self.rates.items() if k != self.mode]
        return f" (chosen by an earlier run, for {mine} against {', '.join(others)})"


def load_choice(path: Path, circumstances: Mapping[str, Any]) -> Choice | None:
    """Reads what an earlier run chose.

    Args:
      path: File that `save_choice` wrote; it may be missing or damaged.
      circumstances: Everything that the choice depends on.

    Returns:
      The choice, or None if none was made in the same circumstances.
    """
    try:
        found = read_json(path)
        if found["circumstances"] != dict(circumstances):
            return None
        rates, compiling = (_by_mode(found[k]) for k in ("steps_per_second", "seconds_to_compile"))
        mode = next(mode for mode in get_args(Mode) if mode == found["mode"])
        return Choice(mode, rates, compiling) if {mode, "graph"} <= set(rates) else None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        StopIteration,
        RecursionError,
    ):
        return None


def _by_mode(found: Mapping[str, Any]) -> dict[Mode, float]:
    """Positive numbers by mode. Raises ValueError for others."""
    numbers = {mode: float(found[mode]) for mode in get_args(Mode) if mode in found}
    if not all(0 < one < float("inf") for one in numbers.values()):
        raise ValueError
    return numbers


def save_choice(path: Path, choice: Choice, circumstances: Mapping[str, Any]) -> None:
    """Writes a choice to a file, so that a resumed run need not measure again.

    Args:
      path: The file.
      choice: The choice.
      circumstances: Everything that it depends on; JSON values.
    """
    text = {
        "mode": choice.mode,
        "steps_per_second": {mode: round(rate, 2) for mode, rate in choice.rates.items()},
        "seconds_to_compile": {mode: round(took, 2) for mode, took in choice.compiling.items()},
        "circumstances": dict(circumstances),
    }
    replace_file(path, json.dumps(text, indent=1) + "\n", is_own=_is_choice)


def _is_choice(content: bytes) -> bool:
    """Whether `save_choice` wrote this, perhaps in an earlier version."""
    try:
        keys = set(json.loads(content)) - {"seconds_to_compile"}
        return keys == {"mode", "steps_per_second", "circumstances"}
    except (ValueError, TypeError, RecursionError):
        return False


def circumstances(train_step: TrainStep) -> dict[str, Any]:
    """Returns what a choice depends on, as far as it is known. JSON values.

    Args:
      train_step: The step.
    """
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(one) for one in gpus]
    weights = train_step.model.trainable_variables
    return {
        "tensorflow": tf.__version__,
        "devices": [one.get("device_name", "GPU") for one in details] or ["CPU"],
        "cores": available_cores(),
        "processor": processor(),
        "replicas": train_step.strategy.num_replicas_in_sync,
        "accumulate": train_step.accumulate,
        "weights": sum(v.shape.num_elements() for v in weights),
    }


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the model of the processor, or its architecture where that isn't known.

    Args:
      path: The file in which Linux tells.
    """
    try:
        found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def rate_text(value: float) -> str:
    """Returns steps per second as a short text."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
