"""Runs the script of a run again, so that it replays the step whose loss was not finite.

    $ tfloss replay runs/digits

The script starts TensorFlow itself. This process doesn't need it, and so answers at once if there
is nothing to replay. Host code, without TensorFlow.
"""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from tfloss.app.script_process import print_error, run_script
from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.manifest import load_manifest
from tfloss.common.command_variables import REPLAY_VARIABLE, RESULT_FILE
from tfloss.common.reading import read_json


def main(workdir: str | Path, *, yes: bool = False) -> int:
    """Replays the newest step kept under `workdir/nonfinite` by running its script again.

    The workdir holds the command to run, and whoever wrote the workdir wrote the command. So it is
    shown first, and a person must agree. The result is printed to standard output and kept beside
    the batch, in `replay.txt`. Runs on the host.

    Args:
      workdir: Workdir of the run.
      yes: Whether to run the command without asking.

    Returns:
      Exit code: 0 if the step was replayed, 2 if nobody agreed to the command.
    """
    kept = sorted(Path(workdir).glob("nonfinite/step_*/report.json"))
    if not kept:
        print_error(
            "replay",
            f"no step is kept under {workdir}/nonfinite. No loss of this run was NaN or infinite, "
            "or its trainer had no NaNGuard.",
        )
        return 1
    path = kept[-1].parent.resolve()
    by_hand = (
        "In a process that has created the trainer in the same way, run:\n\n"
        f"    print(tfloss.replay.replay(trainer, {str(path)!r}))"
    )
    if not _was_script(path):
        print_error(
            "replay",
            "the run was not started from a script, but from a notebook, a prompt, python -c or "
            f"standard input, so it can't be started again. {by_hand}",
        )
        return 1
    report = _read_command(kept[-1])
    if report is None:
        print_error("replay", f"{kept[-1]} holds no command that a NaNGuard wrote. {by_hand}")
        return 1
    if not _confirmed(report, yes):
        return 2
    before = _identity(path / RESULT_FILE)
    code, ending = run_script(report["command"], {REPLAY_VARIABLE: str(path)}, report["directory"])
    if _identity(path / RESULT_FILE) not in (None, before):
        return 0
    print_error(
        "replay",
        f"nothing was replayed. The command of the run {ending}, and no trainer.train(...) in it "
        f"replayed the step. {_describe_command(report)}\n\n{by_hand}",
    )
    return code or 1


def _read_command(file: Path) -> dict[str, Any] | None:
    """Reads a report with the command of a run and its directory; None if they are not there."""
    try:
        report = read_json(file)
        texts = [report["directory"], *report["command"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    plain = all(isinstance(text, str) and "\0" not in text for text in texts)
    return report if plain and isinstance(report["command"], list) and len(texts) > 1 else None


def _describe_command(report: dict[str, Any]) -> str:
    """Shows a command. Control characters, which could hide a part of it, are escaped."""
    text = f"In {report['directory']} it was:\n\n    {shlex.join(report['command'])}"
    shown = [c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text]
    return "".join(shown)


def _confirmed(report: dict[str, Any], yes: bool) -> bool:
    """Shows the command of a run, and asks whether to run it."""
    print(f"tfloss replay: this runs the command of the run again. {_describe_command(report)}\n")
    sys.stdout.flush()  # before the output of the command
    if yes:
        return True
    if not sys.stdin.isatty():
        print_error(
            "replay",
            "nobody can be asked whether to run it, because standard input is no terminal. If you "
            "trust whoever wrote this workdir, pass --yes.",
        )
        return False
    try:
        return input("Run it? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file that was written now from an earlier one."""
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _was_script(path: Path) -> bool:
    newest = CheckpointFiles(path / "state").latest()
    return newest is None or load_manifest(newest)["extra"].get("script", True) is not None
