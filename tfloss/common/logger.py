"""The messages that tfloss prints for people: the logger "tfloss". Host code.

    logger.info("resuming at step 100")        # stderr: "tfloss: resuming at step 100"

The logger shows messages from INFO on, on standard error (in a notebook: standard output), and does
not pass them on. They are silenced and redirected as those of any logger:

    logging.getLogger("tfloss").setLevel(logging.WARNING)            # silence
    logging.getLogger("tfloss").handlers[:] = [my_handler]           # redirect
    logging.getLogger("tfloss").propagate = True                     # also to the root's handlers
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO


def in_notebook() -> bool:
    """Returns whether the code runs in the kernel of a notebook. It doesn't import IPython."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: tests and notebooks replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("tfloss: %(message)s"))

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Standard error; in a notebook standard output, since errors are red boxes there."""
        return sys.stdout if in_notebook() else sys.stderr


logger = logging.getLogger("tfloss")
if not logger.handlers and logger.level == logging.NOTSET:  # the user may have set it up before
    logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


class ChiefLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger "tfloss", silent on all workers but the first.

    Args:
      chief: Whether this process is the first worker, or the only one.
    """

    def __init__(self, chief: bool = True):
        super().__init__(logger, {})
        self._chief = chief

    def isEnabledFor(self, level: int) -> bool:
        """Whether a message of this level is shown on this worker."""
        return self._chief and super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Leaves messages as they are."""
        return msg, kwargs
