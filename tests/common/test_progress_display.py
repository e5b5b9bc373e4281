import io
import subprocess
import sys
import time

from rich.console import Console

from tfloss.common import activity, long_activities, progress_display
from tfloss.common.progress_display import LiveDisplay, PlainDisplay


def _show(display):
    display.start(0, 4)
    display.update(2, lambda width: f"step 2/4 in {width} columns")
    display.print_line("step 2  [b]val/accuracy[/b] 0.5")
    display.update(4, lambda width: f"step 4/4 in {width} columns")
    display.stop()
    display.stop()


def test_a_plain_display_prints_a_line_for_each_update():
    out = io.StringIO()
    _show(PlainDisplay(out))
    assert out.getvalue().splitlines() == [
        "step 2/4 in None columns",
        "step 2  [b]val/accuracy[/b] 0.5",
        "step 4/4 in None columns",
    ]


def _live(width):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=width, color_system=None)
    return out, LiveDisplay(console)


def test_a_live_display_redraws_its_line_below_other_output():
    out, display = _live(99)
    _show(display)
    *_, last = out.getvalue().split("\x1b[2K")
    assert last.partition("\n")[0].rstrip() == "step 4/4 in 99 columns"
    assert "step 2  [b]val/accuracy[/b] 0.5\n" in out.getvalue()  # no markup


def test_a_wide_terminal_has_a_bar():
    out, display = _live(100)
    _show(display)
    *_, last = out.getvalue().split("\x1b[2K")
    assert last.partition("\n")[0].rstrip() == f"{'━' * 16} step 4/4 in 83 columns"


def test_a_live_display_draws_nothing_before_the_first_update():
    out, display = _live(100)
    display.start(0, 4)
    assert out.getvalue() == ""
    display.stop()


LONG = """
import sys, time
from tfloss.common import activity, long_activities
from tfloss.common.progress_display import activity_line

long_activities._FIRST = 0.1
assert "tensorflow" not in sys.modules
with activity_line(sys.stderr):
    with activity.during("importing TensorFlow"):
        time.sleep(float(sys.argv[1]))
    time.sleep(0.3)  # of the script itself
"""


def test_a_pipe_has_a_line_for_what_takes_long_and_none_for_what_is_short():
    for seconds, lines in (("0.35", 2), ("0", 0)):
        done = subprocess.run(
            [sys.executable, "-c", LONG, seconds], stderr=subprocess.PIPE, check=True
        )
        assert b"\r" not in done.stderr and b"\x1b" not in done.stderr
        # After 0.1 s and 0.2 s; on a busy machine the thread may be late.
        assert done.stderr.count(b"importing TensorFlow\n") == len(done.stderr.splitlines())
        assert (len(done.stderr.splitlines()) > 0) == (lines > 0)


def test_a_notebook_has_no_lines_below_the_cell(monkeypatch):
    """They would be red boxes, and stay."""
    monkeypatch.setattr(progress_display, "in_notebook", lambda: True)
    monkeypatch.setattr(long_activities, "_FIRST", 0.01)
    out = io.StringIO()
    with progress_display.activity_line(out), activity.during("importing TensorFlow"):
        time.sleep(0.05)
    assert out.getvalue() == ""
