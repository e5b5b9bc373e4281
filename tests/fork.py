"""Runs scripts in processes that start with TensorFlow imported, which saves 4 seconds each.

A server process imports the packages in `PRELOADED` once and starts nothing. Each script runs
in a fork of it: a process of its own, as if a person had typed `python SCRIPT ARGUMENTS`.
tfloss is not preloaded, so that a script can show that it runs without tfloss.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

PRELOADED = ["tensorflow", "keras", "tensorflow_datasets", "ml_collections"]


def run_script(
    script: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> "subprocess.CompletedProcess[str]":
    """Runs a Python script and returns its exit status and output, as `subprocess.run` does.

    Args:
      script: The script's path.
      *arguments: Its command line arguments.
      environment: Variables to add to those of this process.
      timeout: Seconds after which the script is killed.

    Raises:
      subprocess.TimeoutExpired: The script was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    command = [str(script), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        added = {**os.environ, **(environment or {})}
        process = context.Process(target=_run, args=(command, str(out), str(err), added))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        assert process.exitcode is not None
        return subprocess.CompletedProcess(
            command, process.exitcode, out.read_text(), err.read_text()
        )


@contextlib.contextmanager
def started_script(
    script: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "Iterator[multiprocessing.process.BaseProcess]":
    """Runs a Python script beside the test, and kills it at the end of the `with`.

    Args:
      script: The script's path. Its output is in the files `out` and `err` beside it.
      *arguments: Its command line arguments.
      environment: Variables to add to those of this process.

    Yields:
      The process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    out, err = str(script.with_name("out")), str(script.with_name("err"))
    added = {**os.environ, **(environment or {})}
    process = context.Process(target=_run, args=([str(script), *arguments], out, err, added))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run(command: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:  # noqa: BLE001 - as the interpreter does it; multiprocessing does not
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
