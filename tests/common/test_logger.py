"""Messages go to stderr by default, and are silenced and redirected as those of any logger."""

import io
import logging
import subprocess
import sys

import pytest

from tfloss.common.logger import ChiefLogger, logger

SCRIPT = """
import logging, sys
{setup}
from tfloss.common.logger import ChiefLogger
ChiefLogger().info("resuming")
ChiefLogger(chief=False).info("not the first worker")
ChiefLogger().debug("details")
"""


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("", "tfloss: resuming\n"),
        ("logging.getLogger('tfloss').setLevel(logging.WARNING)", ""),
        ("logging.basicConfig(format='%(name)s %(message)s')", "tfloss: resuming\n"),
        (
            "logging.basicConfig(format='root %(message)s')\n"
            "logging.getLogger('tfloss').setLevel(logging.INFO)",
            "root resuming\n",
        ),
    ],
    ids=["default", "silenced before", "the root has a handler", "set up before: propagates"],
)
def test_where_messages_go(setup, expected):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(setup=setup)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("", expected)


def test_the_handler_writes_to_what_stderr_is_at_the_time(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger.info("one")
    assert stream.getvalue() == "tfloss: one\n"


def test_redirected_and_silenced_later(monkeypatch, capsys):
    stream = io.StringIO()
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    ChiefLogger().info("redirected")
    monkeypatch.setattr(logger, "disabled", True)
    ChiefLogger().info("silenced")
    assert stream.getvalue() == "redirected\n"
    assert capsys.readouterr().err == ""
