"""The folder for everything that a run writes. Host code."""

import os
import socket
from pathlib import Path


def writable(workdir: Path) -> Path:
    """Makes the directory and tries to write in it; OSError names it if that fails.

    Returns it as an absolute path: the program may go to another directory.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".tfloss_write_test_{os.getpid()}_{socket.gethostname()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        message = f"workdir {str(workdir)!r} can't be written to: {error.strerror}"
        raise type(error)(error.errno, message) from None
    return workdir.absolute()
