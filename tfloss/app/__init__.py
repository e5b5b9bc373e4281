"""A training script's command line: flags, recipe, strategy, seed.

    from tfloss import app

    def main(run: app.Run):
        import keras          # here, so that a typo in a flag fails before TensorFlow starts
        ...

    if __name__ == "__main__":
        app.run(main)

    python train.py --config=recipe.py --config.optimizer.learning_rate=3e-4 --workdir=runs/a

A wrong flag or config key ends the program with exit code 2 and the nearest valid name,
before TensorFlow is imported. Host code.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tfloss.app.config import FILE, differences, read_config, to_json, write_config
from tfloss.app.flags import FlagError, Options, parse_flags
from tfloss.errors import MissingWorkersError

if TYPE_CHECKING:
    import tensorflow as tf

    from tfloss.data import Source
    from tfloss.hooks import Hook
    from tfloss.trainer.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Run:
    """What a script's `main` is given.

    Attributes:
      config: the recipe (an `ml_collections.ConfigDict`), with the command line's changes.
      workdir: the folder for everything that is written; it exists.
      mode: "train", "train_and_eval", "eval" or "export".
      strategy: the distribution strategy; create model and optimizer in its scope.
      seed: already set for Python, NumPy and Keras.
      jit: as `tfloss.Trainer` takes it, or None for "auto".
      profile: the steps (start, stop) to profile, or None.
      overfit_batches: how many batches to train on again and again, or None for all.
      max_steps: the last step to run, or None for what the recipe says.
      deterministic: whether the same command must give the same bits.
      max_minutes: how long to train before saving and ending with exit code 124, or None.
    """

    config: Any
    workdir: Path
    mode: str
    strategy: "tf.distribute.Strategy"
    seed: int
    jit: bool | str | None
    profile: tuple[int, int] | None
    overfit_batches: int | None
    max_steps: int | None
    deterministic: bool
    max_minutes: float | None

    @property
    def trains(self) -> bool:
        """Whether the mode is one that trains."""
        return self.mode in ("train", "train_and_eval")

    @property
    def evaluates(self) -> bool:
        """Whether the mode is one that evaluates."""
        return self.mode in ("train_and_eval", "eval")

    def steps(self, steps: int) -> int:
        """The recipe's number of steps, or `--max_steps` if that is less."""
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def overfit(self, data: "tf.data.Dataset | Source") -> "tf.data.Dataset | Source":
        """The data themselves, or with `--overfit_batches=N` their first N batches for ever.

        They are kept in memory as they come the first time, augmentation included.
        """
        if self.overfit_batches is None:
            return data
        from tfloss.data import Source

        dataset = data.dataset() if isinstance(data, Source) else data
        return dataset.take(self.overfit_batches).cache().repeat()

    def trainer(self, model: Any, optimizer: Any, **options: Any) -> "Trainer":
        """A `tfloss.Trainer` with what the flags say: strategy, workdir, seed, jit, deterministic.

        Args:
          model, optimizer: made in the strategy's scope.
          **options: of `tfloss.Trainer`; they come before the flags.
        """
        from tfloss.trainer.trainer import Trainer

        flags = {
            "strategy": self.strategy,
            "workdir": self.workdir,
            "seed": self.seed,
            "jit": "auto" if self.jit is None else self.jit,
            "deterministic": self.deterministic,
        }
        return Trainer(model, optimizer, **{**flags, **options})

    def hooks(self) -> "list[Hook]":
        """The hooks that flags ask for: `--profile`, `--max_minutes`."""
        from tfloss.hooks import Profile, TimeLimit

        hooks: list[Hook] = [Profile(*self.profile)] if self.profile else []
        return hooks + ([TimeLimit(self.max_minutes)] if self.max_minutes else [])

    def report(self, results: Mapping[str, float]) -> None:
        """Prints what an evaluation at the end has found, as `test/<name> <value>` in one line.

        Of several workers, which all found the same, the first one does.
        """
        if not self._first:
            return
        print(*(f"test/{name} {value:.5g}" for name, value in results.items()), sep="  ")

    def where(self) -> str:
        """A line for each thing that lies in the workdir, and how to open TensorBoard.

        On other workers than the first, which writes it all, a line that says so.
        """
        if not self._first:
            return f"{'files':<12}written by the first worker, in {self.workdir}"
        lines = {
            "checkpoints": str(self.workdir / "checkpoints"),
            "metrics.jsonl": str(self.workdir / "metrics.jsonl"),
            "config.json": str(self.workdir / "config.json"),
            "export": str(self.workdir / "export"),
            **{path.name: str(path) for path in _by_step(self.workdir.glob("export_step_*"))},
            "nonfinite": f"{self.workdir / 'nonfinite'}  (tfloss replay {self.workdir})",
            "train": f"tensorboard --logdir {self.workdir}",
        }
        names = {"metrics.jsonl": "values", "config.json": "config", "train": "curves"}
        there = {k: line for k, line in lines.items() if (self.workdir / k).exists()}
        labels = {k: names.get(k, k.partition("_step_")[0]) for k in there}
        return "\n".join(f"{labels[k]:<12}{line}" for k, line in there.items())

    @property
    def _first(self) -> bool:
        """Whether this is the first of several workers, or the only one."""
        from tfloss.distribute.strategy import is_chief

        return is_chief(self.strategy)


def run(
    main: Callable[[Run], Any], *, config: str | None = None, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses the flags, prepares the run, calls `main(run)` and exits the program.

    In this order: flags and recipe; TensorFlow, without its start-up messages; the strategy;
    the seed; `workdir/config.json`, after saying what differs from the one there.

    Args:
      main: takes a `Run`. What it returns is ignored.
      config: path of the recipe to use when `--config` is not given.
      argv: the command line, program name first; `sys.argv` by default.

    Raises:
      SystemExit: always, as `absl.app.run` does: 0 after `main`, 2 for a command line, a
        strategy or a workdir that can't be used, or workers that are missing, 130 after
        Ctrl-C, with a line that says what there is to go on from; 75 after SIGTERM and 124 after
        `--max_minutes`, when a checkpoint is saved.
    """
    from absl import app, flags, logging

    def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
        with _one_line(FlagError):
            options = parse_flags(arguments, config)
        return options, flags.FLAGS["verbosity"].using_default_value

    def start(parsed: tuple[Options, bool]) -> None:
        options, default_verbosity = parsed
        if default_verbosity:  # which absl has turned up to "info" since
            logging.set_verbosity(logging.WARNING)
        prepared = None
        try:
            with _one_line(ValueError, MissingWorkersError):
                prepared = prepare(options)
            main(prepared)
        except KeyboardInterrupt:
            _say(f"interrupted{_what_is_left(prepared)}")
            sys.exit(130)  # as a shell has it: 128 + SIGINT

    app.run(start, argv=None if argv is None else list(argv), flags_parser=parse)
    raise AssertionError  # absl exits


def prepare(options: Options) -> Run:
    """Makes a `Run` of parsed flags: strategy, seed, workdir and its `config.json`.

    In a mode that trains the config is saved, with the flags that shape the training as
    `--seed` and so on; if one was saved before, what differs is printed.

    Raises:
      ValueError: the strategy can't be made here, the saved config can't be read, the
        workdir can't be written or, in a mode that doesn't train, is missing.
      MissingWorkersError: other workers of the cluster have not come in time.
    """
    if options.mode in ("eval", "export") and not options.workdir.is_dir():
        raise ValueError(
            f"--mode={options.mode} needs a trained run, and there is no folder "
            f"{str(options.workdir)!r}."
        )
    from tfloss.app.quiet import import_tensorflow

    import_tensorflow()
    import keras

    from tfloss.distribute.strategy import make_strategy
    from tfloss.inspect.random_ops import make_deterministic

    strategy = make_strategy(options.strategy, options.replicas)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        make_deterministic(options.seed)  # here, since data sets and weights are made before
    prepared = Run(
        config=options.config,
        workdir=options.workdir,
        mode=options.mode,
        strategy=strategy,
        seed=options.seed,
        jit=options.jit,
        profile=options.profile,
        overfit_batches=options.overfit_batches,
        max_steps=options.max_steps,
        deterministic=options.deterministic,
        max_minutes=options.max_minutes,
    )
    try:
        flags = {
            "--seed": options.seed,
            "--strategy": options.strategy,
            "--replicas": strategy.num_replicas_in_sync,
            "--jit": options.jit,
            "--deterministic": options.deterministic,
            "--overfit_batches": options.overfit_batches,
            "--max_steps": options.max_steps,
        }
        _keep_config(prepared, flags)
    except OSError as error:
        raise ValueError(f"Can't write to --workdir={options.workdir}: {error}") from None
    return prepared


def _keep_config(run: Run, flags: dict[str, Any]) -> None:
    """Prints what differs from the config in the workdir, and puts the new one there."""
    old = read_config(run.workdir)
    if not run.trains:  # the flags there are those of the training, and are to differ
        flags = {name: value for name, value in (old or {}).items() if name in flags}
    new = to_json(run.config) | flags
    changed = differences(old, new) if old is not None else []
    if changed and run._first:
        print(f"The config differs from {run.workdir / FILE}; the new one counts:")
        print("".join(f"  {line}\n" for line in changed), end="", flush=True)
    if run.trains and run._first:
        write_config(new, run.workdir)


@contextlib.contextmanager
def _one_line(*errors: type[Exception]):
    """Turns these errors into `program: message` on standard error and exit code 2."""
    try:
        yield
    except errors as error:
        _say(str(error))
        sys.exit(2)


def _by_step(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (len(path.name), path.name))  # 300 before 1000


def _say(message: str) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")


def _what_is_left(run: Run | None) -> str:
    """The end of the line that tells of an interruption."""
    if run is None or not run.trains:
        return "; run the same command to start again."
    from tfloss.checkpoint import CheckpointDirectory

    latest = CheckpointDirectory(run.workdir / "checkpoints").latest()
    if latest is None:
        return f" before there was a checkpoint in {run.workdir}; the same command starts again."
    return f"; the newest checkpoint is {latest}. Run the same command to go on from it."
