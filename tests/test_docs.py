"""The pages in docs/ match the code: generated parts, links, file names."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.rglob("*.md"),
    ROOT / "examples" / "README.md",
]
# A file or a folder of the repository in backticks, with or without what follows it.
PATH = re.compile(r"`((?:tfloss|tests|docs|benchmarks|examples|configs)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)


def test_the_table_of_statements_is_up_to_date():
    module = runpy.run_path(str(DOCS / "correctness.py"))
    assert (DOCS / "correctness.md").read_text() == module["table"]()
    held = {n for n, rows in module["promises"]().items() if not all(row[2] for row in rows)}
    assert held == set(module["STATEMENTS"])


def test_the_changelog_has_one_heading_of_each_kind_for_a_version():
    """A merge may bring old headings back: take main's file, and add your line to its lists."""
    for version in (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]:
        headings = re.findall(r"^### (.*)$", version, re.M)
        assert headings == [kind for kind in ("Added", "Changed", "Fixed") if kind in headings]


def test_the_picture_of_the_packages_is_up_to_date():
    """`python docs/package_picture.py` draws it again."""
    module = runpy.run_path(str(DOCS / "package_picture.py"))
    assert not module["missing"]()
    assert (DOCS / "packages.svg").read_text() == module["picture"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path):
    text = prose(page)
    named = [ROOT / path for path in PATH.findall(text)]
    linked = [page.parent / path for path, _ in LINK.findall(text) if path]
    assert not [str(path) for path in [*named, *linked] if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_in_lists_are_indented_by_four(page: Path):
    """MkDocs takes less for the end of the list, unlike GitHub."""
    blocks = re.findall(r"^\n {1,3}\S.*|^ {1,3}(?:```|\|).*", page.read_text(), re.M)
    assert not blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_follow_an_empty_line(page: Path):
    """MkDocs takes an item after a line of text for a part of the text, unlike GitHub."""
    lines = prose(page).split("\n")
    item = re.compile(r"\s*(?:[-*]|\d+\.) ")
    for before, line in zip(lines, lines[1:], strict=False):
        if item.match(line):
            assert not before or before[0] == " " or item.match(before), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sections_that_a_page_links_to_exist(page: Path):
    for path, section in LINK.findall(prose(page)):
        if section:
            titles = re.findall(r"^#+ (.*)$", (page.parent / (path or page.name)).read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert section in anchors, f"{path}#{section}"
