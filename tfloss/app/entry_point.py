"""Starts a training script: flags, TensorFlow, strategy, seed and `config.json`. Host code.

`run(main)` is the last line of a script. `prepare(options)` makes the same `Run` in a notebook or a
test, which have no command line.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tfloss.app.config import differences, to_json, write_config
from tfloss.app.flags import FlagError, Options, parse_flags
from tfloss.app.training_run import Run
from tfloss.common.command_variables import INSPECT_VARIABLE, RANGE_VARIABLE
from tfloss.common.logger import ChiefLogger
from tfloss.common.progress_display import activity_line
from tfloss.errors import CheckpointError, MissingWorkersError, WorkdirError


def run(
    main: Callable[[Run], Any], *, config: str | None = None, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses the flags, prepares the run, calls `main(run)` and exits the process. Host code.

    The order is: flags and config; TensorFlow, without its start-up messages; the strategy; the
    seed; a message about what changed since `workdir/config.json` was saved.

    Args:
      main: The script's function of a `Run`. Its return value is ignored.
      config: The path of the config file if `--config` is not given.
      argv: The command line, program name first. None stands for `sys.argv`.

    Raises:
      SystemExit: Always, as `absl.app.run` does. The code is 0 after `main`, and after `--help`;
        2 if the command line, the strategy or the workdir can't be used, or workers are missing;
        130 after Ctrl-C, with a message that names the newest checkpoint; 75 after SIGTERM and 124
        after `--max_minutes`, when a checkpoint is saved.
    """
    from absl import app, flags, logging

    def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
        try:
            with _exit_on(FlagError):
                options = parse_flags(arguments, config)
        except SystemExit as ending:
            if ending.code == 1:  # so absl ends when it has printed the help that was asked for
                sys.exit(0)
            raise
        return options, flags.FLAGS["verbosity"].using_default_value

    def start(parsed: tuple[Options, bool]) -> None:
        options, default_verbosity = parsed
        if default_verbosity:  # absl has raised it to "info" since
            logging.set_verbosity(logging.WARNING)
        if options.dry_run:
            os.environ.setdefault(INSPECT_VARIABLE, json.dumps({"dry_run": True}))
        prepared = None
        try:
            with _exit_on(ValueError, MissingWorkersError):
                prepared = prepare(options)
            main(prepared)
        except KeyboardInterrupt:
            _print_error(_interrupted(prepared))
            sys.exit(130)  # a shell's code for SIGINT, 128 + 2

    try:
        with activity_line(sys.stderr):
            app.run(start, argv=None if argv is None else list(argv), flags_parser=parse)
    except Exception as error:
        if "tensorflow" in sys.modules:
            from tfloss.inspect.traceback_filtering import shorten

            shorten(error)
        raise
    raise AssertionError  # absl exits


def prepare(options: Options) -> Run:
    """Makes a `Run` of parsed flags: strategy, seed, workdir and `config.json`. Host code.

    The first training step in the workdir saves the config, together with the flags that change the
    result, as `--seed` and so on. So a run that fails before it, or that has nothing to do, doesn't
    change `config.json`. If the workdir has a config already, a message lists what differs.

    Args:
      options: The parsed flags.

    Returns:
      The run, for `main`.

    Raises:
      ValueError: The strategy is not available here, the saved config can't be read, the workdir
        can't be written, the mode doesn't train and there is no workdir, or it trains and there is
        a checkpoint to restore.
      MissingWorkersError: Other workers of the cluster did not connect in time.
    """
    waits = options.mode == "eval" and options.follow
    if options.mode in ("eval", "export") and not options.workdir.is_dir() and not waits:
        raise ValueError(
            f"--mode={options.mode} needs a trained run, and the directory "
            f"{str(options.workdir)!r} does not exist."
        )
    if options.mode not in ("eval", "export") and options.restore is not None:
        raise ValueError(
            f"--restore={options.restore} chooses the checkpoint that --mode=eval or --mode=export "
            "uses. Training continues from the newest one. To go back to an earlier one, call "
            "trainer.restore(data, step=...) before train(), or start in a new --workdir with "
            "tfloss.load_weights."
        )
    from tfloss.app.quiet import import_tensorflow

    import_tensorflow()
    import keras

    from tfloss.distribute.strategy import make_strategy
    from tfloss.inspect.determinism import enable_op_determinism

    strategy = make_strategy(options.strategy, options.replicas)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        enable_op_determinism(options.seed)  # before the script makes data sets and weights
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
        restore=options.restore,
        follow=options.follow,
    )
    try:
        _update_config(prepared, options)
    except WorkdirError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"Can't write to --workdir={options.workdir}: {error}") from None
    return prepared


def _update_config(run: Run, options: Options) -> None:
    """Logs how the config differs from that of the workdir; the first training step saves it."""
    from tfloss.trainer.workdir import (
        CONFIG_FILE,
        check_entries,
        read_config,
        writable,
        write_when_trained,
    )

    flags = {
        "--seed": options.seed,
        "--strategy": options.strategy,
        "--replicas": run.strategy.num_replicas_in_sync,
        "--jit": options.jit,
        "--deterministic": options.deterministic,
        "--overfit_batches": options.overfit_batches,
        "--max_steps": options.max_steps,
    }
    writes = run.trains and run.is_chief and RANGE_VARIABLE not in os.environ
    if writes:
        writable(run.workdir)
        check_entries(run.workdir)
    old = read_config(run.workdir)
    if not run.trains:  # an evaluation may use other flags than the training did
        flags = {name: value for name, value in (old or {}).items() if name in flags}
    new = to_json(run.config) | flags
    changed = differences(old, new) if old is not None else []
    if changed:
        lines = [
            f"The config differs from {run.workdir / CONFIG_FILE}. The new values apply:",
            *changed,
        ]
        ChiefLogger(run.is_chief).info("\n  ".join(lines))
    if writes:
        write_when_trained(run.workdir, functools.partial(write_config, new, run.workdir))


@contextlib.contextmanager
def _exit_on(*errors: type[Exception]) -> Generator[None]:
    """Turns these errors into `program: message` on standard error and exit code 2."""
    try:
        yield
    except errors as error:
        _print_error(str(error))
        sys.exit(2)


def _print_error(message: str) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")


def _interrupted(run: Run | None) -> str:
    """The message after Ctrl-C: what a second start of the command does."""
    if run is None or not run.trains:
        return "interrupted. Run the same command to start again."
    from tfloss.checkpoint import CheckpointDirectory

    latest = None
    with contextlib.suppress(CheckpointError):
        latest = CheckpointDirectory(run.workdir / "checkpoints").latest()
    if latest is None:
        return (
            f"interrupted before the first checkpoint in {run.workdir}. The same command starts "
            "from the beginning."
        )
    return (
        f"interrupted; the newest checkpoint is {latest}. Run the same command to resume from it."
    )
