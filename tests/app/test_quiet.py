"""TensorFlow is imported without its start-up messages."""

import gc
import os
import pty
import re
import subprocess
import sys
import time

import pytest

import tfloss


def test_other_messages_stay(capfd):
    from tfloss.app.quiet import _START_UP_MESSAGES, _without

    with _without(_START_UP_MESSAGES):
        os.write(2, b"I0000 00:00 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"E0000 00:00 alloc.cc:1] out of memory\n")
        print("a warning", file=sys.stderr)

    err = capfd.readouterr().err
    assert "port.cc" not in err
    assert "out of memory\n" in err


def test_a_call_that_comes_too_late_says_so():
    with pytest.warns(UserWarning, match="called after TensorFlow was imported"):
        tfloss.quiet()


@pytest.fixture
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("_thawed")
@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_rests_during_the_import_and_leaves_its_objects_alone(collecting):
    from tfloss.app.quiet import _frozen

    if not collecting:
        gc.disable()
    before = gc.get_freeze_count()
    with _frozen():
        assert not gc.isenabled()
        made = [[i] for i in range(1_000)]
    assert gc.isenabled() is collecting
    assert gc.get_freeze_count() >= before + len(made)


@pytest.mark.usefixtures("_thawed")
def test_the_garbage_collector_works_on_after_an_import_that_failed():
    from tfloss.app.quiet import _frozen

    before = gc.get_freeze_count()
    with pytest.raises(ImportError), _frozen():
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


TIMED = "import sys, tfloss; tfloss.quiet(); print('imported', file=sys.stderr)"
QUIET = """
import tfloss
tfloss.quiet()
import gc
assert gc.isenabled() and gc.get_freeze_count() > 100_000
import tensorflow as tf
f = tf.function(lambda x: x + 1.0, jit_compile=True)
print(f(tf.ones([])).numpy())
"""


def _default_environment():
    """Without the variable of the tests, with which nothing is held back."""
    return {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}


def _without_long_activities(text):
    return re.sub(r"importing TensorFlow \d:\d\d\n", "", text)  # on a busy machine


@pytest.mark.slow
def test_a_log_file_has_a_line_while_tensorflow_is_imported():
    """At once, though what native code writes is held back until the import has ended."""
    code = f"from tfloss.common import long_activities as a; a._FIRST = 0.5; {TIMED}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env=_default_environment()
    ) as process:
        lines = [(line, time.monotonic()) for line in process.stderr]
    (first, began), *_, (last, ended) = lines
    assert re.fullmatch(rb"importing TensorFlow( \d:\d\d)?\n", first)  # late on a busy machine
    assert last == b"imported\n"
    assert ended - began > 0.5


@pytest.mark.slow
def test_a_script_without_app_has_no_noise():
    loud = QUIET.replace("tfloss.quiet()", "").replace("assert", "# assert")
    ran = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=_default_environment(),
        )
        for code in (QUIET, loud)
    ]
    assert (ran[0].stdout, _without_long_activities(ran[0].stderr)) == ("2.0\n", "")
    assert "oneDNN" in ran[1].stderr and "XLA" in ran[1].stderr


@pytest.mark.slow
def test_a_terminal_is_told_within_two_seconds():
    began = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm"
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        os.execv(sys.executable, [sys.executable, "-c", QUIET])
    text, seen = b"", None
    try:
        while part := os.read(terminal, 65536):
            text += part
            if seen is None and b"importing TensorFlow" in text:
                seen = time.monotonic() - began
    except OSError:  # the process has ended
        pass
    os.waitpid(process, 0)
    assert seen is not None and seen < 2.0, text
    left = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", text.rpartition(b"\x1b[2K")[2])
    assert left.split() == [b"2.0"]  # the line is gone
