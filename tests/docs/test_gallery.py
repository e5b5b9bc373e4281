"""The two programs of each section of docs/gallery.md end with the same weights."""

import re
from pathlib import Path

import pytest

from tests.docs import run_page
from tests.fork import run_script

ROOT = Path(__file__).parents[2]
PAGE = "docs/gallery.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*)$", TEXT, re.M)
TAB = re.compile(
    r'^=== "(Keras|tfloss), (\d+) lines"\n\n( {4}```python\n.*?^ {4}```$)', re.M | re.S
)
SLOW = {"A Wasserstein GAN", "Text from a sequence, with CTC"}


@pytest.mark.parametrize(
    "section",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SECTIONS],
)
def test_both_programs_end_with_the_same_weights(section: str, tmp_path: Path):
    """`pages/gallery.py` compares them."""
    script = ROOT / "tests" / "docs" / "run_page.py"
    done = run_script(script, PAGE, str(tmp_path), section)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tabs_have_as_many_lines_as_they_say(section: str):
    tabs = TAB.findall(run_page.section_of(TEXT, section))
    assert [side for side, _, _ in tabs] == ["Keras", "tfloss"]
    for _, said, code in tabs:
        lines = [line for line in code.splitlines()[1:-1] if line.strip()]
        assert len(lines) == int(said) <= 40


def test_code_in_tabs_keeps_its_line_and_loses_its_indent():
    first = "a\n\n## One\n\n```python\nx = 1\n```\n"
    text = first + '\n## Two\n\n=== "Keras"\n\n    ```python\n    y = 2\n    ```\n'
    section = run_page.section_of(text, "Two")
    assert run_page.blocks(section) == [(14, None, "y = 2\n")]
    assert run_page.program(section).splitlines()[13] == "y = 2"
    assert "x" not in run_page.program(section)


def test_the_page_states_the_tolerance():
    setup = run_page.setup_of(PAGE).read_text()
    assert "TOLERANCE = 1e-5" in setup
    assert "by more than 1e-5" in TEXT
