"""The code on the pages runs: Python blocks as one program for each page, shell blocks checked."""

import ast
from pathlib import Path

import pytest

from tests.docs import run_page
from tests.fork import run_script

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]
}
# Pages that have tests of their own: by section, or with packages beyond the extras of tfloss.
ELSEWHERE = {
    "docs/gallery.md": "tests/docs/test_gallery.py",
    "docs/sweeps.md": "tests/examples/test_sweeps.py",
}
SLOW = {"docs/guide.md", "docs/notebooks.md", "docs/quick_start.md", "docs/recipes.md"}
SLOW |= {f"docs/from/{name}.md" for name in ("fastai", "huggingface", "lightning", "orbit")}
PROGRAMS = [page for page, text in PAGES.items() if run_page.blocks(text)]


RUN_HERE = [
    pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
    for page in sorted(set(PROGRAMS) - set(ELSEWHERE))
]


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path):
    script = ROOT / "tests" / "docs" / "run_page.py"
    done = run_script(script, page, str(tmp_path))
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_python_of_a_page_is_valid(page: str):
    """This quick test is for the pages that run in slow tests."""
    for line, _, code in run_page.blocks(PAGES[page]):
        try:
            ast.parse(code)
        except SyntaxError as error:
            pytest.fail(f"{page}, line {line + (error.lineno or 1) - 1}: {error}")


def test_every_python_block_is_found():
    """A block that the pattern misses would run in no test."""
    for page, text in PAGES.items():
        assert text.count("```python") == len(run_page.blocks(text)), page


def test_pages_that_run_elsewhere_do():
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text()


def test_each_setup_has_its_page():
    files = set((ROOT / "tests" / "docs" / "pages").glob("*.py"))
    assert files <= {run_page.setup_of(page) for page in PROGRAMS}
