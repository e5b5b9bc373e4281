"""What all workers of a run must have in common, compared before the first step. Host code.

A worker with other arguments, code, libraries or data does not fail by itself. It makes other calls
of collectives, so that all workers hang, or it trains other weights in silence.
"""

import os
import site
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfloss
from tfloss.checkpoint.directory import versions
from tfloss.data import batches
from tfloss.data.batch_reader import BatchReader
from tfloss.hooks.base import Hook, is_own
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.inspect.source_lines import is_library, is_tfloss
from tfloss.optimizers import hyperparameters
from tfloss.trainer.hook_states import named

_ADVICE = (
    "All workers must run the same program, with the same arguments, code, libraries and data. "
    "Start all of them again with the same command."
)
# Variables that change what a program computes, or which collectives it calls.
_ENVIRONMENT = (
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "NVIDIA_TF32_OVERRIDE",
)


_OPTIONS = "jit log_every log_every_step steps_per_call seed deterministic async_checkpoint".split()


def trainer_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Chooses the arguments of `Trainer` that must be the same on all workers.

    Args:
      arguments: The arguments of `Trainer`, by name.
    """
    found = {name: _plain(arguments[name]) for name in _OPTIONS}
    return found | {"has a workdir": arguments["workdir"] is not None}


def compare_workers(
    trainer: TrainerProtocol, reader: BatchReader, options: Mapping[str, Any]
) -> None:
    """Checks that all workers have the same settings. All of them must call it.

    Args:
      trainer: The trainer of this worker. Its model need not be built.
      reader: The data.
      options: Further settings, JSON values by name.

    Raises:
      WorkerError: Two workers differ. The message names each difference, and the workers.
    """
    agreement, train_step = trainer.agreement, trainer.train_step
    if agreement.workers == 1:
        return
    place = "the comparison of the settings, before training"
    code = agreement.gather(place, _code(), forget_errors=True)
    common = set.intersection(*(set(one) for one in code))
    settings = {
        "libraries": versions(),
        "code": {name: code[agreement.index][name] for name in sorted(common)},
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "devices": _devices(train_step.strategy, agreement.workers),
        **options,
        "step": train_step.settings(),
        "optimizers": {n: optimizer_settings(one) for n, one in train_step.optimizers.items()},
        "model": {"class": type(train_step.model).__qualname__, **_variables(train_step.model)},
        "data": data_settings(reader),
        "hooks": _hooks(trainer.hooks),
    }
    agreement.require_equal(settings, _ADVICE, place)


def optimizer_settings(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Describes an optimizer: its class and its config."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas
            config = optimizer.get_config()
    except (NotImplementedError, OSError):  # the user's own; a rate by a lambda without source code
        config = hyperparameters.numbers(optimizer)
    # Keras numbers the names of all optimizers of a process.
    plain = {key: _plain(value) for key, value in config.items() if key != "name"}
    return {"class": type(optimizer).__qualname__, **plain}


def data_settings(reader: BatchReader) -> dict[str, Any]:
    """Describes data: the kind, and what is known of the batches without reading one."""
    found: dict[str, Any] = {"kind": "a Source" if reader.seekable else "a function"}
    spec = reader.dataset.element_spec
    if reader.shared or reader.seekable:
        found["batches"] = {path: str(leaf) for path, leaf in batches.named_leaves(spec, "batch")}
        found["kind"] = found["kind"] if reader.seekable else "a tf.data.Dataset"
        found["batch_size"] = reader.batch_size
        found["number of batches"] = reader.batches_per_epoch
        found["endless"] = reader.endless
    return found | {"identity": _plain(reader.identity())} if reader.seekable else found


def _hooks(hooks: Sequence[Hook]) -> dict[str, Any]:
    """Describes the hooks in whose calls all workers take part."""
    shared = [hook for hook in hooks if not hook.chief_only or hook.every is not None]
    found: dict[str, Any] = {"order": list(named(shared))}
    for name, hook in named(shared).items():
        compared = is_own(hook) and not hook.chief_only
        found[name] = {**(hook.arguments if compared else {}), "every": repr(hook.every)}
    return found


def _devices(strategy: tf.distribute.Strategy, workers: int) -> dict[str, Any]:
    return {
        "replicas of each worker": strategy.num_replicas_in_sync // workers,
        "kinds": sorted({one.device_type for one in tf.config.list_physical_devices()}),
    }


def _variables(model: keras.Model) -> dict[str, Any]:
    if not model.built:
        return {}
    return {
        "variables": {
            v.path: f"{v.dtype} {tuple(v.shape)}, {'trainable' if v.trainable else 'frozen'}"
            for v in model.variables
        }
    }


# Where packages are installed, and the standard library.
_INSTALLED = frozenset(
    Path(path)
    for path in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
)


def _code() -> dict[str, str]:
    """Returns a checksum of the source file of each module that is loaded, but for libraries."""
    found = {"tfloss": _checksum(sorted(Path(tfloss.__file__).parent.rglob("*.py")))}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py") or not os.path.isfile(path):
            continue
        installed = not _INSTALLED.isdisjoint(Path(path).parents)  # compared by their versions
        if not (installed or is_library(path) or is_tfloss(path)):
            found[f"{Path(path).name} ({name})"] = _checksum([Path(path)])
    return found


def _checksum(paths: Sequence[Path]) -> str:
    checksum = 0
    for path in paths:
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"


def _plain(value: Any) -> Any:
    """A value as JSON has it. Objects count by their class: their text may have an address."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":  # its code has the path of its file
            return "a lambda"
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    return getattr(value, "__qualname__", type(value).__qualname__)
