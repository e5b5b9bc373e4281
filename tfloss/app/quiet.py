"""Imports TensorFlow without its start-up chatter. Host code."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Printed by TensorFlow 2.21 on standard error while it is imported and first asked for its
# devices, before it looks at TF_CPP_MIN_LOG_LEVEL.
_CHATTER = re.compile(
    rb"I0000 |WARNING: All log messages before absl::InitializeLog"
    rb"|E0000 .*failed call to cuInit"
)


def import_tensorflow() -> None:
    """Imports TensorFlow, quietly unless it is imported already or TF_CPP_MIN_LOG_LEVEL is set."""
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import tensorflow

        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only
    with _without(_CHATTER):
        import tensorflow

        tensorflow.config.list_physical_devices()


@contextlib.contextmanager
def _without(chatter: re.Pattern[bytes]) -> Iterator[None]:
    """Drops the matching lines that native code writes to standard error inside."""
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
                if not chatter.match(line):
                    os.write(2, line)
