"""The `tfloss` command. Host code.

    tfloss replay runs/digits     runs again, eagerly, the step whose loss was not finite
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

    replay = commands.add_parser(
        "replay",
        help="run the step whose loss was not finite once more, eagerly",
        description="Runs the step whose loss was not finite once more, eagerly, and prints "
        "which tensor went bad first. It starts the training script again, as it was started "
        "then, up to its trainer.train(...).",
    )
    replay.add_argument("workdir", type=Path, help="the workdir of the run that stopped")
    replay.set_defaults(run=_replay)

    version = commands.add_parser("version", help="print the versions of tfloss and TensorFlow")
    version.set_defaults(run=_version)
    return parser


def _replay(arguments: argparse.Namespace) -> int:
    if not arguments.workdir.is_dir():
        sys.stderr.write(f"tfloss replay: there is no folder {str(arguments.workdir)!r}.\n")
        return 2
    from tfloss.app.quiet import import_tensorflow

    import_tensorflow()
    from tfloss import replay

    return replay.main(arguments.workdir) or 0


def _version(arguments: argparse.Namespace) -> int:
    from importlib import metadata

    from tfloss.version import __version__

    found = [f"tfloss {__version__}"]
    found += [f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras")]
    print(", ".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
