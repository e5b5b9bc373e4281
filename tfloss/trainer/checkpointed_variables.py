"""The variables that a checkpoint of a training run holds, by name.

    model/<path>           weights, statistics, seed generators, other variables of the model, and
                           what its layers have besides (`tfloss.checkpoint.layer_states`)
    <optimizer>/<path>     slots, by the path of the variable they belong to; iterations
    step                   completed updates
    ...                    the variables of `TrainStep.extra_variables`, under their own names

Host code, cross-replica.
"""

import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfloss import _upstream
from tfloss.checkpoint import (
    BackgroundWriter,
    CheckpointDirectory,
    load_manifest,
    load_values,
    named_layer_states,
    named_optimizer_variables,
    named_variables,
    sync_replicas,
)
from tfloss.checkpoint.load_weights import has_loaded
from tfloss.checkpoint.renumbering import Renumbering
from tfloss.errors import CheckpointError
from tfloss.optimizers.ema import PREFIX as EMA
from tfloss.optimizers.ema import Averages, Ema
from tfloss.step.random_states import (
    STRIDE,
    replay_states,
    set_replay_states,
    set_seed,
    split_seeds,
)
from tfloss.step.train_step import TrainStep


class CheckpointedVariables:
    """The variables of a training step: saved, restored, and seeded.

    Args:
      train_step: The step.

    Attributes:
      strategy: The strategy that the step runs under.
      train_step: The argument.
    """

    def __init__(self, train_step: TrainStep):
        self.train_step = self._step = train_step
        self.strategy = train_step.strategy
        self._matched = ""  # the layers that have other numbers in the restored checkpoint

    def variables(self) -> dict[str, Any]:
        """Returns `{name: variable}` of all variables and of what layers have besides."""
        found: dict[str, Any] = {"step": self._step.counter}
        model = self._step.model
        for name, variable in {**named_variables(model), **named_layer_states(model)}.items():
            found[f"model/{name}"] = variable
        for optimizer_name, optimizer in self._step.optimizers.items():
            for name, variable in named_optimizer_variables(optimizer).items():
                found[f"{optimizer_name}/{name}"] = variable
        found.update(self._step.extra_variables())
        return found

    def save(
        self,
        directory: CheckpointDirectory,
        step: int,
        hooks: Mapping[str, Any],
        *,
        extra: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        background: BackgroundWriter | None = None,
        write: bool = True,
    ) -> Path:
        """Saves all variables and the hooks' states as one checkpoint.

        All workers must call it, because all must read the variables. Statistics that each replica
        has of its own are replaced by their mean first, so that training continues from exactly the
        state that is saved.

        Args:
          directory: The directory of the checkpoints.
          step: The number of completed updates.
          hooks: The hooks' states, by name.
          extra: More JSON values; see `CheckpointDirectory.save`.
          files: More files; see `CheckpointDirectory.save`.
          background: What writes the checkpoint while training continues, or None.
          write: Whether this worker writes.

        Returns:
          The directory of the checkpoint.
        """
        self.sync_replicas()
        extra = {
            **(extra or {}),
            "hooks": dict(hooks),
            "seeds": {"replicas": self._step.strategy.num_replicas_in_sync, "stride": STRIDE},
        }
        return directory.save(
            step, self.variables(), extra, files=files, background=background, write=write
        )

    def restore(
        self, directory: CheckpointDirectory, path: Path
    ) -> tuple[int, dict[str, dict[str, Any]]]:
        """Restores a checkpoint.

        A constant learning rate is configuration: the optimizer keeps the one that it has, and a
        warning reports the difference.

        Args:
          directory: The directory of the checkpoints.
          path: The checkpoint.

        Returns:
          The step of the checkpoint, and the hooks' states for `set_hook_states`.

        Raises:
          CheckpointError: Names or shapes differ, or the optimizer is another one. Nothing has been
            changed then.
        """
        manifest = load_manifest(path)
        names = self._renumbering(manifest["variables"])
        if not self.trains:
            self._adopt_averages(path, names.here(manifest["variables"]))
        variables = names.in_checkpoint(self.variables())
        saved, states = manifest["variables"], manifest["extra"].get("hooks", {})
        if not isinstance(states, dict) or not all(isinstance(v, dict) for v in states.values()):
            raise CheckpointError(
                f"The hooks' states in {path} are corrupt. To resume from an earlier "
                f"checkpoint, move {path} away."
            )
        self._check_optimizers(path, saved, variables)
        rates = {name: variables.pop(name) for name in list(variables) if self._is_rate(name)}
        ignored = [name for name in saved if self._is_rate(name)]
        if not self.trains:
            for name in [k for k in self._step.skipping.variables() if k not in saved]:
                del variables[name]
            ignored = [k for k in saved if k not in variables and not _is_evaluated(k)]
        directory.restore(path, variables, ignore=ignored)
        self._matched = str(names)
        _upstream.finalize_states(self._step.model)
        split_seeds(self._step.model, self._step.strategy)
        if "hyperparameters" not in manifest["extra"]:  # else `RunCheckpoint` compares them
            self._report_rates(path, rates)
        return int(self._step.counter.numpy()), states

    @property
    def trains(self) -> bool:
        """Whether there is an optimizer. Without one, only what evaluation uses is restored."""
        return bool(self._step.optimizers)

    def describe_restored(self, path: Path, saved: Collection[str]) -> str:
        """Returns a message for people: what was restored, what was not, and where averages are.

        Args:
          path: The checkpoint.
          saved: The names of its variables.
        """
        step = int(self._step.counter.numpy())
        matched = ""
        if self._matched:
            matched = (
                ". Keras has counted on since the checkpoint was saved, so layers were matched by "
                f"their order within a class ({self._matched})"
            )
        if self.trains:
            return f"resuming at step {step} from {path}{matched}"
        here = self._renumbering(saved).in_checkpoint(self.variables())
        ignored = sorted({name.split("/")[0] for name in saved if name not in here})
        text = (
            f"restored step {step} from {path}, without an optimizer: it can be evaluated{matched}"
        )
        if ignored:
            text += f", and what only training needs was left out ({', '.join(ignored)})"
        if self._step.averages is not None:
            text += (
                ". The model has the weights of this step. Their moving averages are used by "
                "evaluate(..., ema=True) and inside `with trainer.averaged():`"
            )
        return f"{text}."

    def seed(self, seed: int) -> None:
        """Sets every seed generator of the model to a state that depends only on `seed`."""
        set_seed(self._step.model, seed)
        split_seeds(self._step.model, self._step.strategy)

    def sync_replicas(self) -> None:
        """Replaces variables that differ between replicas by their mean, on every replica."""
        if self._step.strategy.num_replicas_in_sync > 1:
            averages = self._step.averages
            more = averages.variables().values() if averages is not None else ()
            sync_replicas(self._step.model, more)

    def save_for_replay(self, path: Path, *, write: bool = True) -> None:
        """Saves the model, with values that may not be finite, so that a step can be replayed.

        The path of the running script is saved too; notebooks, prompts and `python -c` have none.

        Args:
          path: The directory of the kept step.
          write: Whether this worker writes.
        """
        model = {k: v for k, v in self.variables().items() if k.startswith("model/")}
        step = int(self._step.counter.numpy())
        script = getattr(sys.modules.get("__main__"), "__file__", None) or "<none>"
        extra = {
            "script": None if script.startswith("<") else script,  # "<stdin>"
            "random": replay_states(self.strategy),
        }
        CheckpointDirectory(path / "state").save(
            step, model, extra, check_finite=False, write=write
        )

    def restore_for_replay(self, path: Path, replica: int = 0) -> None:
        """Restores what `save_for_replay` saved, with the random states of one replica.

        Args:
          path: The directory of the kept step.
          replica: Number of the replica.
        """
        directory = CheckpointDirectory(path / "state")
        model = {k: v for k, v in self.variables().items() if k.startswith("model/")}
        newest = directory.latest()
        assert newest is not None, f"{path}/state is empty"
        directory.restore(newest, model)
        _upstream.finalize_states(self._step.model)
        for _, state in _upstream.seed_states(self._step.model):
            state.assign(state.numpy() + np.array([replica * STRIDE, 0]))
        # A step that an earlier version kept has none.
        set_replay_states(load_manifest(newest)["extra"].get("random", {}), replica)

    def _renumbering(self, saved: Collection[str]) -> Renumbering:
        """Returns the numbers that layers without a name have in a checkpoint."""
        model = self._step.model
        here = [f"model/{name}" for name in {**named_variables(model), **named_layer_states(model)}]
        return Renumbering(model, here, _of_model(saved))

    def _adopt_averages(self, path: Path, saved: Collection[str]) -> None:
        """Makes the averages that a checkpoint has: there is no `ema=` that says which these are.

        Raises:
          CheckpointError: `ema=` is given, and the run kept no averages.
        """
        names = [name for name in saved if name.startswith(EMA)]
        if not names and self._step.averages is not None:
            raise CheckpointError(
                f"The checkpoint {path} has no moving averages of the weights: the run was made "
                "without ema=. Nothing was restored. Leave ema= out."
            )
        averages = self._step.averages
        if names and (averages is None or set(averages.variables()) != set(names)):
            with self.strategy.scope():
                self._step.averages = Averages(Ema(0.5), self._step.model, names)

    def _is_rate(self, name: str) -> bool:
        """Whether this is the name of a constant learning rate. A schedule has no variable."""
        optimizer = next((o for o in self._step.optimizers if name.startswith(f"{o}/")), None)
        return optimizer is not None and name.endswith("/learning_rate")

    def _check_optimizers(self, path: Path, saved: Collection[str], here: Collection[str]) -> None:
        """Raises CheckpointError if an optimizer has other kinds of variables than the saved one.

        A model that has changed is not checked here: what some optimizers keep depends on it.
        """
        if _of_model(saved) != _of_model(here):
            return
        for name, optimizer in self._step.optimizers.items():
            before, now = _kept(name, saved), _kept(name, here)
            if before and before != now:
                raise CheckpointError(
                    f"The checkpoint {path} was written with another optimizer. There {name!r} "
                    f"keeps {', '.join(sorted(before))}; this one ({type(optimizer).__name__}) "
                    f"keeps {', '.join(sorted(now))}. Nothing was restored. Resume with the same "
                    "optimizer and the same optimizer options, or start in a new workdir and use "
                    "tfloss.load_weights(model, path) for the weights. To evaluate only, leave the "
                    "optimizer out: Trainer(model, workdir=...)."
                )

    def _report_rates(self, path: Path, rates: Mapping[str, Any]) -> None:
        """Warns of constant learning rates that differ from the checkpoint's."""
        saved = load_manifest(path)["variables"]
        values = load_values(path, [name for name in rates if name in saved])
        for name, value in values.items():
            old, new = float(value), float(rates[name].numpy())
            if old != new:
                warnings.warn(
                    f"The learning rate was {old:g} in {path} and is {new:g} now. A constant "
                    "rate is configuration, so the new one applies.",
                    stacklevel=2,
                )


def _is_evaluated(name: str) -> bool:
    """Whether evaluation uses a variable, so that it must be in the checkpoint and in the model."""
    return name == "step" or name.startswith(("model/", EMA))


def _of_model(names: Collection[str]) -> set[str]:
    """The names of the model's variables."""
    return {name for name in names if name.startswith("model/")}


def _kept(optimizer: str, names: Collection[str]) -> set[str]:
    """What an optimizer keeps: kinds of slots ("momentum"), and names of other variables."""
    own = [n.removeprefix(f"{optimizer}/") for n in names if n.startswith(f"{optimizer}/")]
    kinds = {n.rpartition("/")[2].partition("#")[0] if _is_slot(n, names) else n for n in own}
    return {kind for kind in kinds if not kind.endswith("learning_rate")}


def _is_slot(name: str, names: Collection[str]) -> bool:
    """Whether a variable of an optimizer belongs to a variable of the model."""
    return f"model/{name.rpartition('/')[0]}" in names


def warn_if_unrestored(directory: CheckpointDirectory | None, model: keras.Model) -> None:
    """Warns that there is a checkpoint, and that the weights to be evaluated are not from it."""
    newest = directory.latest() if directory is not None else None
    if newest is not None and not has_loaded(model):
        warnings.warn(
            f"Evaluating weights that this Trainer neither trained nor restored, although there "
            f"is {newest}. To evaluate those, call trainer.restore(data) first.",
            stacklevel=4,  # this function, Trainer.evaluate and its decorator
        )
