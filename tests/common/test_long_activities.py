"""What takes long is told after 5 seconds, and again after 10, 20, 40, ..."""

import threading
import time

from tfloss.common import long_activities
from tfloss.common.long_activities import LongActivities


def test_the_intervals_grow():
    now, told = 0.0, []
    long = LongActivities(lambda: told.append(now), thread=False)
    long.changed(lambda: now)
    for second in range(100):
        now = float(second)
        wait = long.poll()
        assert wait == next(due for due in (5, 10, 20, 40, 80, 160) if due > now) - now
    assert told == [5, 10, 20, 40, 80]


def test_what_is_short_or_has_ended_is_not_told():
    now, told = 0.0, []
    seconds = lambda: now  # noqa: E731
    long = LongActivities(lambda: told.append(now), thread=False)
    for second in range(60):  # one after the other, of two seconds each
        now = second % 2.0
        long.changed(seconds)
        long.poll()
    long.changed(None)
    now = 100.0
    long.poll()
    assert told == []
    long.changed(seconds)  # goes on after something inside of it: told again at 160 s
    long.poll()
    now = 161.0
    long.poll()
    assert told == [161.0]


def test_a_closed_stream_is_survived():
    def fail():
        raise ValueError("I/O operation on closed file")

    now = 0.0
    long = LongActivities(fail, thread=False)
    long.changed(lambda: now)
    now = 6.0
    assert long.poll() == 4.0


def test_the_thread_tells_by_itself_and_ends(monkeypatch):
    monkeypatch.setattr(long_activities, "_FIRST", 0.05)
    told = threading.Event()
    long = LongActivities(told.set)
    for _ in range(2):  # it can be used again
        told.clear()
        began = time.monotonic()
        long.changed(lambda began=began: time.monotonic() - began)
        thread = long._thread
        assert told.wait(30)
        long.stop()
        thread.join(30)
        assert not thread.is_alive()
