"""`Run`: what the flags of a training script ask for, and the steps that most scripts share. Host.

def main(run: app.Run) -> None:
    ...
    with run.strategy.scope():
        model, optimizer = ...
    run.train_and_evaluate(
        run.trainer(model, optimizer), train_data, eval_data, metrics,
        steps=run.config.steps, every=tfloss.Every(steps=500), best="val/accuracy",
    )
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfloss.common.command_variables import INSPECT_VARIABLE

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfloss.data.distributed import Data
    from tfloss.evaluation.metrics import BoundMetric, HostMetric
    from tfloss.hooks import Every, Hook, OnSteps
    from tfloss.saved_model.signature import Inputs
    from tfloss.step.trace_options import Jit
    from tfloss.trainer.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Run:
    """The parsed command line of a training script. `tfloss.app.run` passes it to `main`.

    Attributes:
      config: The config, an `ml_collections.ConfigDict`, with the overrides of the command line.
      workdir: The directory for everything that the run writes. It exists.
      mode: "train", "train_and_eval", "eval" or "export".
      strategy: The distribution strategy. Create the model and the optimizer in its scope.
      seed: The random seed. It is already set for Python, NumPy and Keras.
      jit: The argument `jit` of `tfloss.Trainer`, or None for its default.
      profile: The range of steps (start, stop) to profile, or None.
      overfit_batches: The number of batches to train on repeatedly, or None for all data.
      max_steps: The upper bound on the number of training steps, or None.
      deterministic: Whether the same command must give bit-identical results.
      max_minutes: The time after which the run saves a checkpoint and exits with code 124, or None.
      restore: What `--restore` says, or None.
      follow: Whether the mode "eval" evaluates each new checkpoint until the run has ended: False,
        True (in their order) or "newest" (the newest one first).
    """

    config: Any
    workdir: Path
    mode: str
    strategy: "tf.distribute.Strategy"
    seed: int
    jit: "Jit | None"
    profile: tuple[int, int] | None
    overfit_batches: int | None
    max_steps: int | None
    deterministic: bool
    max_minutes: float | None
    restore: str | None = None
    follow: bool | str = False

    @property
    def trains(self) -> bool:
        """Whether the mode trains."""
        return self.mode in ("train", "train_and_eval")

    @property
    def evaluates(self) -> bool:
        """Whether the mode evaluates."""
        return self.mode in ("train_and_eval", "eval")

    @property
    def is_chief(self) -> bool:
        """Whether this process is the first worker, which prints and writes, or the only one."""
        from tfloss.distribute.strategy import is_chief

        return is_chief(self.strategy)

    def train_and_evaluate(
        self,
        trainer: "Trainer",
        train_data: "Data",
        eval_data: "Data",
        metrics: "Mapping[str, BoundMetric | HostMetric] | None" = None,
        *,
        steps: int,
        every: "Every | OnSteps",
        losses: bool = False,
        ema: bool = False,
        best: str | None = None,
        best_mode: Literal["min", "max"] | None = None,
        export: "Callable[[keras.Model, Path], Any] | Inputs | None" = None,
        test_data: "Data | None" = None,
        hooks: "Sequence[Hook]" = (),
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """Trains, evaluates or exports, as `--mode` says, and prints the results. Host code.

        It is made of public parts. A script that needs another order copies these lines::

            beside = [*hooks, SaveCheckpoint(every), *run.hooks()]
            if run.evaluates:
                evaluate = Evaluate(eval_data, metrics, every=every)
                beside = [evaluate, ExportBest("val/accuracy", export=export), *beside]
            if run.trains:
                trainer.train(run.overfit(train_data), run.steps(steps), hooks=beside)
            else:
                trainer.restore(train_data, **run.selected_checkpoint("val/accuracy"))
            if run.evaluates:
                run.report(trainer.evaluate(eval_data, metrics))
            if run.mode == "export":
                export(trainer.model, run.workdir / f"export_step_{trainer.step}")
            print(run.where())

        Args:
          trainer: The trainer, usually from `Run.trainer`.
          train_data: Training batches. `--overfit_batches` applies to them.
          eval_data: A finite data set of evaluation batches. What selects a checkpoint or an export
            is measured on them, so it is the validation set if there is a test set, too.
          metrics: Metrics by name, as `Trainer.evaluate` takes them. None: those of the model's
            method `evaluation_metrics()`.
          steps: The number of training steps. `--max_steps` may lower it.
          every: How often to evaluate and to save a checkpoint.
          losses: Whether evaluations also report the losses of the training forward.
          ema: Whether to evaluate and export the moving averages of the weights.
          best: The name of a logged metric, such as "val/accuracy". Each time it improves, the
            model is exported to `workdir/export`. None turns this off.
          best_mode: "max" or "min". None: what is known of the metric; see
            `tfloss.hooks.ExportBest`.
          export: The `inputs` of `tfloss.export`, or a function `(model, path)` that exports the
            model to `path`. Without it `best` saves weights only, and `--mode=export` is an error.
          test_data: A finite data set that selects nothing. It is evaluated at the end, with the
            weights of the last step, and by `--mode=eval`; not by `--follow`.
          hooks: Further hooks. They run after evaluations and before checkpoints.
          batch_size: The examples in a batch, for those of the data that are arrays or tables.

        Returns:
          The results of the final evaluation by name, of `test_data` if it is given; empty in modes
          that don't evaluate.

        Raises:
          ValueError: The mode is "export", and there is no `export`. Or nobody knows the direction
            of `best`, and there is no `best_mode`. Or `--restore=best`, and there is no `best`.
          CheckpointError: The mode doesn't train, and the workdir has no usable checkpoint.
          ExportError: `export` is neither a function nor the inputs of a SavedModel.
        """
        from tfloss.app.continuous_evaluation import follow
        from tfloss.data.adapted import has_examples
        from tfloss.evaluation.metrics import own_metrics
        from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint
        from tfloss.hooks.export_best import export_function

        def size(data: Any) -> dict[str, Any]:
            return {"batch_size": batch_size} if has_examples(data) else {}

        if self.mode == "export" and export is None:
            raise ValueError(
                "--mode=export: give train_and_evaluate an `export`: inputs or a function."
            )
        write = None if export is None else export_function(export)
        beside = [*hooks, SaveCheckpoint(every), *self.hooks()]
        options: dict[str, Any] = {"losses": losses, "ema": ema}
        if metrics is None and self.evaluates:
            metrics = own_metrics(trainer.model)
        evaluate = last = Evaluate(
            eval_data, metrics or {}, every=every, **options, **size(eval_data)
        )
        if test_data is not None and not self.follow:
            last = Evaluate(test_data, metrics or {}, name="test", **options, **size(test_data))
        evaluation = functools.partial(trainer.evaluate, last.data, metrics, **options)
        if self.evaluates and best is not None:
            beside = [ExportBest(best, best_mode, export=write, ema=ema), *beside]
        elif write is not None and INSPECT_VARIABLE in os.environ:  # a dry run tries it
            beside = [ExportBest("losses/total", export=write, ema=ema), *beside]
        if self.evaluates:
            beside = [evaluate, *([] if last is evaluate else [last]), *beside]
        results: dict[str, float] = {}
        if self.follow:
            first = self.follow == "newest"
            results = follow(trainer, train_data, evaluation, newest_first=first)
        elif self.trains:
            data = self.overfit(train_data, batch_size)
            trainer.train(data, self.steps(steps), hooks=beside, **size(data))
        else:
            trainer.restore(train_data, **self.selected_checkpoint(best))
        if self.evaluates:
            results = results or last.results_at(trainer.step) or evaluation()
            self.report(results, last.name)
        if self.mode == "export" and write is not None:
            with trainer.averaged() if ema else contextlib.nullcontext():
                write(trainer.model, self.workdir / f"export_step_{trainer.step}")
        print(self.where())
        return results

    def selected_checkpoint(self, best: str | None = None) -> dict[str, Any]:
        """Returns the arguments of `Trainer.restore` that `--restore` asks for.

        Args:
          best: The name of the metric that `--restore=best` stands for, as logged.

        Raises:
          ValueError: The flag is "best", and there is no such metric.
        """
        if self.restore is None:
            return {}
        if self.restore == "best" and best is None:
            raise ValueError(
                "--restore=best: the script names no metric (train_and_evaluate(..., best=)). Give "
                "the name of a logged one: --restore=val/accuracy."
            )
        if self.restore.isdecimal():
            return {"step": int(self.restore)}
        return {"best": best if self.restore == "best" else self.restore}

    def steps(self, steps: int) -> int:
        """Applies `--max_steps`.

        Args:
          steps: The number of training steps of the config.

        Returns:
          The lower one of `steps` and `--max_steps`.
        """
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def overfit(self, data: "Data", batch_size: int | None = None) -> "Data":
        """Applies `--overfit_batches`.

        Args:
          data: Training batches.
          batch_size: The examples in a batch, for arrays and tables.

        Returns:
          With `--overfit_batches=N` an endless repetition of the first N batches, which are kept
          in memory with the augmentation of their first use. Without the flag, `data`.
        """
        if self.overfit_batches is None:
            return data
        from tfloss.data.adapted import adapted, has_examples
        from tfloss.data.distributed import as_dataset

        size = batch_size if has_examples(data) else None
        data = adapted(data, size, training=True, seed=self.seed)
        return as_dataset(data, self.strategy).take(self.overfit_batches).cache().repeat()

    def trainer(self, model: "keras.Model", optimizer: Any, **options: Any) -> "Trainer":
        """Makes a `tfloss.Trainer` with the strategy, workdir, seed and so on of the flags.

        Args:
          model: The model, created in the scope of `strategy`.
          optimizer: The optimizer or the groups of optimizers, created in the same scope.
          **options: Further arguments of `tfloss.Trainer`. They override the flags.

        Returns:
          The trainer.
        """
        from tfloss.trainer.trainer import Trainer

        flags: dict[str, Any] = {
            "strategy": self.strategy,
            "workdir": self.workdir,
            "seed": self.seed,
            "jit": "auto" if self.jit is None else self.jit,
            "deterministic": self.deterministic,
        }
        return Trainer(model, optimizer, **(flags | options))

    def hooks(self) -> "list[Hook]":
        """Makes the hooks of `--profile` and `--max_minutes`.

        Returns:
          New hooks; an empty list without these flags.
        """
        from tfloss.hooks import Profile, TimeLimit

        found: list[Hook] = [Profile(*self.profile)] if self.profile else []
        return found + ([TimeLimit(self.max_minutes)] if self.max_minutes else [])

    def report(self, results: Mapping[str, float], data: str = "val") -> None:
        """Prints results as `val/<name> <value>`, all in one line, on the first worker only.

        Args:
          results: The results of an evaluation by name.
          data: The name of the data that were evaluated, such as "val" or "test".
        """
        if self.is_chief:
            print(*(f"{data}/{name} {value:.5g}" for name, value in results.items()), sep="  ")

    def where(self) -> str:
        """Describes what the workdir contains.

        Returns:
          One line for each file or directory that exists, and how to open TensorBoard. On workers
          other than the first, one line that names the workdir.
        """
        if not self.is_chief:
            return f"{'files':<12}written by the first worker, in {self.workdir}"
        exports = sorted(self.workdir.glob("export_step_*"), key=lambda p: (len(p.name), p.name))
        found = {
            "checkpoints": ("checkpoints", ""),
            "metrics.jsonl": ("values", ""),
            "config.json": ("config", ""),
            "export": ("export", _best_note(self.workdir / "export")),
            **{path.name: ("export", "") for path in exports},  # step 300 before step 1000
            "nonfinite": ("nonfinite", f"  (tfloss replay {self.workdir})"),
        }
        lines = [
            f"{label:<12}{self.workdir / name}{note}"
            for name, (label, note) in found.items()
            if (self.workdir / name).exists()
        ]
        if (self.workdir / "train").exists():
            lines.append(f"{'curves':<12}tensorboard --logdir {self.workdir}")
        return "\n".join(lines)


def _best_note(export: Path) -> str:
    """Returns what is known of a best export: the value of the metric and its step."""
    from tfloss.common.reading import read_json
    from tfloss.hooks.described_export import description_file

    try:
        best = read_json(description_file(export))
        return f"  ({best['metric']} {best['value']:.6g}, step {best['step']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
