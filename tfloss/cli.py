"""The `tfloss` command. Host code.

    tfloss launch --workers 2 -- python train.py ...    a cluster of workers on this machine
    tfloss replay runs/digits    runs again, eagerly, the step whose loss was not finite
    tfloss checkpoints runs/digits    lists them: age, size, whether they are whole, the best
    tfloss checkpoints runs/digits --diff 1000 2000    which variables changed, and by how much
    tfloss version

A sub-command is one function that takes the parsed arguments and returns the exit code; it
imports what it needs when it runs, so that `tfloss --help` is instant.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` by default) and returns the exit code.

    Raises:
      SystemExit: with code 2 for wrong usage, 0 for --help.
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfloss", description="Train TensorFlow models that own their losses."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    launch = commands.add_parser(
        "launch",
        help="run a script as several workers on this machine",
        usage="tfloss launch --workers N [--max-restarts N] [--grace SECONDS] -- COMMAND ...",
        description="Runs the command as several workers on this machine, each with a TF_CONFIG "
        "and a share of the GPUs of its own, and prints what they print behind their numbers. "
        "Signals are passed on. When one worker fails, all are ended, and the exit code is that "
        "worker's.",
    )
    launch.add_argument("--workers", type=_at_least(1), required=True, help="how many processes")
    launch.add_argument(
        "--max-restarts",
        type=_at_least(0),
        default=0,
        help="how often all are started again after one has failed (0)",
    )
    launch.add_argument(
        "--grace",
        type=_at_least(0),
        default=30,
        help="seconds between SIGTERM and SIGKILL for those that are ended (30)",
    )
    launch.add_argument("command", nargs=argparse.REMAINDER, help="python train.py ...")
    launch.set_defaults(run=_launch)

    replay = commands.add_parser(
        "replay",
        help="run the step whose loss was not finite once more, eagerly",
        description="Runs the step whose loss was not finite once more, eagerly, and prints "
        "which tensor went bad first. It starts the training script again, as it was started "
        "then, up to its trainer.train(...).",
    )
    replay.add_argument("workdir", type=Path, help="the workdir of the run that stopped")
    replay.set_defaults(run=_replay)

    checkpoints = commands.add_parser(
        "checkpoints",
        help="list the checkpoints of a run, or compare two of them",
        description="Lists the checkpoints of a run: step, age, size, whether all files are what "
        "was written or what is wrong, and the metric of the best. With --diff, tells which "
        "variables changed between two of them: the largest difference, and the norm of the "
        "difference over the norm before.",
    )
    checkpoints.add_argument("workdir", type=Path, help="of the run, or its checkpoints directory")
    checkpoints.add_argument(
        "--diff",
        type=_at_least(0),
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="two steps whose checkpoints are compared",
    )
    checkpoints.set_defaults(run=_checkpoints)

    version = commands.add_parser("version", help="print the versions of tfloss and TensorFlow")
    version.set_defaults(run=_version)
    return parser


def _at_least(least: int):
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise ValueError
        return value

    number.__name__ = f"number (from {least})"  # argparse says: invalid number (from 1) value
    return number


def _launch(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        sys.stderr.write("tfloss launch: no command; it comes last: -- python train.py ...\n")
        return 2
    from tfloss.distribute import launch

    return launch.run(command, arguments.workers, arguments.max_restarts, arguments.grace)


def _replay(arguments: argparse.Namespace) -> int:
    if not arguments.workdir.is_dir():
        sys.stderr.write(f"tfloss replay: there is no folder {str(arguments.workdir)!r}.\n")
        return 2
    from tfloss.app.quiet import import_tensorflow

    import_tensorflow()
    from tfloss import replay

    return replay.main(arguments.workdir) or 0


def _checkpoints(arguments: argparse.Namespace) -> int:
    from tfloss.checkpoint import listing
    from tfloss.errors import CheckpointError

    try:
        files = listing.find(arguments.workdir)
        if arguments.diff is None:
            listing.show(files)
            return 0
        for step in arguments.diff:
            if step not in files.steps():
                there = ", ".join(map(str, files.steps()))
                raise CheckpointError(f"There is no checkpoint of step {step}; there are {there}.")
        from tfloss.app.quiet import import_tensorflow

        import_tensorflow()
        from tfloss.checkpoint import compare

        compare.show(files, *arguments.diff)
    except CheckpointError as error:
        sys.stderr.write(f"tfloss checkpoints: {error}\n")
        return 2
    return 0


def _version(arguments: argparse.Namespace) -> int:
    from importlib import metadata

    from tfloss.version import __version__

    found = [f"tfloss {__version__}"]
    found += [f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras")]
    print(", ".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
