import pytest

from tfloss.common import activity


def _text():
    current = activity.current()
    return current and current.text


def test_the_innermost_activity_is_told_to_the_last_watcher():
    seen, first = [], []

    @activity.during("saving")
    def save():
        return _text()

    with activity.watched(lambda: first.append(_text())):
        with activity.during("evaluating", runs_steps=True):
            assert activity.current().runs_steps
            with activity.watched(lambda: seen.append(_text())):
                assert save() == save() == "saving"
        with pytest.raises(ValueError), activity.during("exporting"):
            raise ValueError
    assert seen == ["saving", "evaluating"] * 2
    assert first == ["evaluating", None, "exporting", None]
    assert save() == "saving" and _text() is None


def test_each_activity_is_timed_from_its_beginning():
    now = 0.0
    timer = activity.Timer(lambda: now)
    assert timer.current() is None
    with activity.during("evaluating"):
        assert timer.current()[0].text == "evaluating"
        now = 3.0
        with activity.during("tracing"):
            found, seconds = timer.current()
            now = 5.0
            assert (found.text, seconds()) == ("tracing", 2.0)
        found, seconds = timer.current()
        assert (found.text, seconds()) == ("evaluating", 5.0)
    assert timer.current() is None
