"""Typical mistakes are answered shortly: the user's own line, what is at fault, what to do."""

import linecache
import traceback

import pytest

from tests.mistakes.cases import MISTAKES, START, Mistake

LINES = 12


def answer(script: str) -> list[str]:
    """Runs a script and returns what Python prints about its error."""
    lines = script.splitlines(keepends=True)
    linecache.cache["train.py"] = (len(script), None, lines, "train.py")
    try:
        exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})  # noqa: S102
    except Exception as error:
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # this function's frame
        return "".join(traceback.format_exception(error)).splitlines()
    pytest.fail("The script has no error.")


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=list(MISTAKES))
def test_the_answer_is_short_and_names_the_line(mistake: Mistake):
    script = START + mistake.wrote
    found = answer(script)
    text = "\n".join(found)
    assert len(found) <= LINES, text
    assert "train.py" in found[1], text  # the user's own line comes first
    assert "/tfloss/" not in text and "site-packages" not in text, text
    assert "\x1b" not in text, text
    if "tfloss.export(" in script:
        assert text.count("Traceback") == 1, text  # no second one "during handling"
    at_fault = [i for i, line in enumerate(script.splitlines(), 1) if line.endswith("# here")]
    assert len(at_fault) == 1
    assert any(f"line {at_fault[0]}" in line or f"py:{at_fault[0]}" in line for line in found), text
    for one in mistake.says:
        assert one in text, text


def test_there_are_enough_mistakes():
    assert len(MISTAKES) >= 60
