"""Imports TensorFlow without its start-up messages. Host code."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Generator

# TensorFlow 2.21 prints these on standard error when it is imported and lists its devices, before
# it reads TF_CPP_MIN_LOG_LEVEL.
_START_UP_MESSAGES = re.compile(
    rb"I0000 |WARNING: All log messages before absl::InitializeLog"
    rb"|E0000 .*failed call to cuInit"
)


def import_tensorflow() -> None:
    """Imports TensorFlow and hides its start-up messages.

    The messages stay visible if TensorFlow is imported already, or if the environment variable
    TF_CPP_MIN_LOG_LEVEL is set.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import tensorflow

        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only
    with _without(_START_UP_MESSAGES):
        import tensorflow

        tensorflow.config.list_physical_devices()


@contextlib.contextmanager
def _without(messages: re.Pattern[bytes]) -> Generator[None]:
    """Drops the lines that match from what native code writes to standard error inside."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not messages.match(line):
                    os.write(2, line)
