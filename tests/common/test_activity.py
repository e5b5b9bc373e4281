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
