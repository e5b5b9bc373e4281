"""Imports TensorFlow without its start-up messages. Host code."""

import contextlib
import gc
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Generator

from tfloss.common import activity
from tfloss.common.progress_display import activity_line

# TensorFlow 2.21 prints these on standard error when it is imported and lists its devices, before
# it reads TF_CPP_MIN_LOG_LEVEL.
_START_UP_MESSAGES = re.compile(
    rb"I0000 |WARNING: All log messages before absl::InitializeLog"
    rb"|E0000 .*failed call to cuInit"
)


def quiet() -> None:
    """Imports TensorFlow sooner, and without its messages, in scripts without `tfloss.app`. Host.

        import tfloss
        tfloss.quiet()
        import keras, tensorflow as tf

    Call it before anything imports TensorFlow or Keras: TensorFlow prints when it is imported.
    Without Python's garbage collector, which rests meanwhile, the import takes a fifth less time.
    Errors are still shown. On a terminal, a line says that TensorFlow is imported. If the
    environment variable TF_CPP_MIN_LOG_LEVEL is set, it decides what is shown.
    """
    if "tensorflow" in sys.modules:
        warnings.warn(
            "tfloss.quiet() is called after TensorFlow was imported, so it hides nothing. Call it "
            "before the script imports tensorflow or keras.",
            stacklevel=2,
        )
        return
    with activity_line(sys.stderr):
        import_tensorflow()


@activity.during("importing TensorFlow")
def import_tensorflow() -> None:
    """Imports TensorFlow and hides its start-up messages.

    The messages stay visible if TensorFlow is imported already, or if the environment variable
    TF_CPP_MIN_LOG_LEVEL is set.
    """
    if "tensorflow" in sys.modules:
        return
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        with _frozen():
            import tensorflow

        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only
    with _without(_START_UP_MESSAGES), _frozen():
        import tensorflow

        tensorflow.config.list_physical_devices()


@contextlib.contextmanager
def _frozen() -> Generator[None]:
    """Keeps the garbage collector off the objects that are made inside, now and later.

    Importing TensorFlow makes 650,000 objects, nearly all of which live as long as the process. The
    collector would visit them a thousand times, which takes a fifth of the import, and again
    whenever a trace makes many objects.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


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
