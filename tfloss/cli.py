"""The `tfloss` command. Host code.

    tfloss launch --workers 2 -- python train.py ...          several workers on this machine
    tfloss inspect -- python train.py ...                     looks at a run before training
    tfloss replay runs/digits                                 debugs a loss that was not finite
    tfloss checkpoints runs/digits                            lists checkpoints
    tfloss checkpoints runs/digits --metric val/loss          lists them with this metric
    tfloss checkpoints runs/digits --diff 1000 2000           compares two checkpoints
    tfloss compare runs/a runs/b                              settings and results, and a picture
    tfloss examples                                           lists the examples
    tfloss examples digits                                    copies one to this folder
    tfloss lr-range -- python train.py ...                    a learning-rate range test
    tfloss version                                            or tfloss --version

`python -m tfloss` is the same command.

Each command is a function that takes the parsed arguments and returns the exit code. It imports
what it needs when it runs, so `tfloss --help` does not wait for TensorFlow.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
      argv: The arguments, without the program name. None stands for those of `sys.argv`.

    Returns:
      The exit code.

    Raises:
      SystemExit: The usage is wrong (code 2), or the arguments ask for help (code 0).
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfloss", description="Tools for models that own their losses."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="the same as the command")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    launch = commands.add_parser(
        "launch",
        help="run a script as several workers on this machine",
        usage="tfloss launch --workers N [--max-restarts N] [--grace SECONDS] -- COMMAND ...",
        description="Runs a command as several workers on this machine. Each worker gets its own "
        "TF_CONFIG and its own part of the GPUs. Their output is printed, prefixed by the number "
        "of the worker, and signals are passed on to them. If one worker fails, all others are "
        "stopped, and its exit code is returned.",
    )
    _add_launch_arguments(launch)

    replay = commands.add_parser(
        "replay",
        help="rerun the step whose loss was not finite",
        description="Reruns the step whose loss was not finite, in eager mode, and names the first "
        "tensor that was not finite. It starts the training script again, with the original "
        "arguments, as far as trainer.train(...). The workdir holds that command, so it is shown "
        "first, and you are asked.",
    )
    replay.add_argument("workdir", type=Path, help="workdir of the run that stopped")
    replay.add_argument("--yes", action="store_true", help="run the command without asking")
    replay.set_defaults(run=_replay)

    _add_checkpoints(commands)

    compare = commands.add_parser(
        "compare",
        help="compare the settings, losses and metrics of runs",
        description="Prints a table of several runs: the settings that differ, and the last, "
        "lowest and highest values of losses and metrics. It also draws their curves.",
    )
    _add_compare_arguments(compare)

    _add_inspect(commands)
    _add_lr_range(commands)
    _add_examples(commands)
    version = commands.add_parser("version", help="print the versions of tfloss and TensorFlow")
    version.set_defaults(run=_version)
    return parser


def _add_checkpoints(commands: Any) -> None:
    checkpoints = commands.add_parser(
        "checkpoints",
        help="list the checkpoints of a run, or compare two of them",
        description="Lists the checkpoints of a run: step, age, size, whether the files are "
        "intact, and the metric of the best checkpoints. With --diff, lists the variables that "
        "differ between two checkpoints, with the largest absolute difference and the relative "
        "norm of the difference.",
    )
    checkpoints.add_argument("workdir", type=Path, help="workdir of the run, or its checkpoints")
    checkpoints.add_argument(
        "--diff",
        type=_integer_from(0),
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="steps of two checkpoints to compare",
    )
    checkpoints.add_argument("--metric", help="logged metric to list, such as val/accuracy")
    checkpoints.set_defaults(run=_checkpoints)


def _add_examples(commands: Any) -> None:
    examples = commands.add_parser(
        "examples",
        help="list the examples, or copy one",
        description="Lists the examples. With a name, copies this one and its configs to "
        "examples/NAME and configs/, and prints the command that trains it.",
    )
    examples.add_argument("name", nargs="?", metavar="NAME", help="example to copy")
    examples.add_argument(
        "--to", type=Path, default=Path(), metavar="DIR", help="folder to copy to (default: .)"
    )
    examples.set_defaults(run=_examples)


def _add_compare_arguments(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="workdir of a run")
    compare.add_argument(
        "--metrics",
        nargs="+",
        action="extend",
        default=[],
        metavar="GLOB",
        help="names to show, such as 'val/*' (default: losses and metrics)",
    )
    compare.add_argument(
        "--png",
        type=Path,
        default=Path("compare.png"),
        help="picture to write (default: %(default)s)",
    )
    compare.add_argument("--no-png", action="store_true", help="print the table only")
    compare.set_defaults(run=_compare)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="look at a run before training",
        usage="tfloss inspect [--replicas N] [--dry-run] [--json FILE] [--html FILE] -- ...",
        description="Runs a training script as far as trainer.train(...), and reports what it "
        "would train: losses, variables, state, memory, and what may not be meant. With "
        "--replicas, one batch is computed on one and on N logical CPU devices, and each loss and "
        "gradient that differs is named.",
    )
    inspect.add_argument("--replicas", type=_integer_from(2), help="number of logical devices")
    inspect.add_argument(
        "--dry-run", action="store_true", help="make one step, evaluate one batch, export"
    )
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    inspect.add_argument("command", nargs=argparse.REMAINDER, help="python train.py ...")
    inspect.set_defaults(run=_inspect)


def _add_lr_range(commands: Any) -> None:
    lr_range = commands.add_parser(
        "lr-range",
        help="find a learning rate: the loss while the rate rises",
        usage="tfloss lr-range [--from RATE] [--to RATE] [--steps N] [--png FILE] -- COMMAND ...",
        description="Runs a training script as far as its first trainer.train(...), and trains "
        "there with a learning rate that rises exponentially, until the loss diverges. Draws the "
        "loss over the rate, and writes the numbers beside the picture, as JSON. The workdir of "
        "the script stays as it is.",
    )
    lr_range.add_argument(
        "--from", dest="low", type=float, default=1e-7, help="first rate (default: %(default)s)"
    )
    lr_range.add_argument(
        "--to", dest="high", type=float, default=10.0, help="last rate (default: %(default)s)"
    )
    lr_range.add_argument(
        "--steps", type=_integer_from(10), default=100, help="updates (default: %(default)s)"
    )
    lr_range.add_argument(
        "--png",
        type=Path,
        default=Path("lr_range.png"),
        help="picture to write (default: %(default)s)",
    )
    lr_range.add_argument("command", nargs=argparse.REMAINDER, help="python train.py ...")
    lr_range.set_defaults(run=_lr_range)


def _add_launch_arguments(launch: argparse.ArgumentParser) -> None:
    launch.add_argument(
        "--workers", type=_integer_from(1), required=True, help="number of processes"
    )
    launch.add_argument(
        "--max-restarts",
        type=_integer_from(0),
        default=0,
        help="how often to restart all workers after one has failed (default: %(default)s)",
    )
    launch.add_argument(
        "--grace",
        type=_integer_from(0),
        default=30,
        help="seconds between SIGTERM and SIGKILL for workers that are stopped "
        "(default: %(default)s)",
    )
    launch.add_argument("command", nargs=argparse.REMAINDER, help="python train.py ...")
    launch.set_defaults(run=_launch)


def _integer_from(least: int) -> Callable[[str], int]:
    """A type of arguments: integers of at least `least`."""

    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise ValueError
        return value

    parse.__name__ = f"number (from {least})"  # argparse prints "invalid number (from 1) value"
    return parse


def _launch(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        sys.stderr.write(
            "tfloss launch: the command is missing. Add it at the end: -- python train.py ...\n"
        )
        return 2
    from tfloss.distribute import launch

    return launch.run(command, arguments.workers, arguments.max_restarts, arguments.grace)


def _inspect(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        sys.stderr.write(
            "tfloss inspect: the command is missing. Add it at the end: -- python train.py ...\n"
        )
        return 2
    from tfloss.app import inspect_command

    return inspect_command.main(
        command,
        replicas=arguments.replicas,
        dry_run=arguments.dry_run,
        report=arguments.json,
        html=arguments.html,
    )


def _replay(arguments: argparse.Namespace) -> int:
    if not arguments.workdir.is_dir():
        sys.stderr.write(f"tfloss replay: there is no directory {str(arguments.workdir)!r}.\n")
        return 2
    from tfloss.app import replay_command

    return replay_command.main(arguments.workdir, yes=arguments.yes)


def _checkpoints(arguments: argparse.Namespace) -> int:
    from tfloss.checkpoint import listing
    from tfloss.errors import CheckpointError

    try:
        files = listing.find_checkpoints(arguments.workdir)
        if arguments.diff is None:
            listing.print_checkpoints(files, arguments.metric)
            return 0
        for step in arguments.diff:
            if step not in files.steps():
                there = ", ".join(map(str, files.steps()))
                raise CheckpointError(
                    f"There is no checkpoint of step {step}. There are checkpoints of: {there}."
                )
        from tfloss.app.quiet import import_tensorflow

        import_tensorflow()
        from tfloss.checkpoint.compare import print_changes

        print_changes(files, *arguments.diff)
    except CheckpointError as error:
        sys.stderr.write(f"tfloss checkpoints: {error}\n")
        return 2
    return 0


def _examples(arguments: argparse.Namespace) -> int:
    from tfloss.app import examples

    try:
        if arguments.name is None:
            for name, summary in examples.listed().items():
                print(f"{name:<10} {summary}")
            return 0
        commands = examples.copy(arguments.name, arguments.to)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tfloss examples: {error}\n")
        return 2
    print("pip install 'tfloss[examples]'", *commands, sep="\n")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from tfloss.app.compare import compare

    png = None if arguments.no_png else arguments.png
    try:
        messages = compare(arguments.runs, arguments.metrics, png)
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"tfloss compare: {error}\n")
        return 1 if isinstance(error, ImportError) else 2
    for message in messages:
        sys.stderr.write(f"{message}\n")
    return 0


def _lr_range(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command or not 0 < arguments.low < arguments.high:
        reason = "--from must be positive, and less than --to."
        if not command:
            reason = "the command is missing. Add it at the end: -- python train.py ..."
        sys.stderr.write(f"tfloss lr-range: {reason}\n")
        return 2
    from tfloss.app import lr_range_command

    limits = arguments.low, arguments.high
    return lr_range_command.main(command, *limits, arguments.steps, arguments.png)


class _Version(argparse.Action):
    """`tfloss --version`. The versions are read only if somebody asks for them."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        """Prints the versions and ends the process."""
        parser.exit(_version(argparse.Namespace()))


def _version(arguments: argparse.Namespace) -> int:
    from importlib import metadata

    from tfloss.version import __version__

    found = [f"tfloss {__version__}"]
    found += [f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras")]
    print(", ".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
