"""Gives the site of MkDocs the layout of the repository, so that links are right in both places.

`mkdocs.yml` names this file as a hook. The site has the pages, at the repository's paths, and the
files that they link to. A folder that a page links to becomes a page with the code in it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "examples" / "README.md",
]
CODE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\((?![a-z]+:)([^)#]+)")
IMAGE = re.compile(r"<img src='([^':]+)'")
FOLDER = re.compile(r"(\]\((?![a-z]+:)[^)#]*/)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Replaces the files of `docs/` by those at the repository's paths. Called by MkDocs."""
    wanted = {path: None for path in PAGES}
    for page in PAGES:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for link in [*LINK.findall(text), *IMAGE.findall(text)]:
            path = (page.parent / link).resolve()
            if path.is_file():
                wanted[path] = None
            elif path.is_dir() and not (path / "README.md").exists():
                wanted[path / "README.md"] = folder_page(path)
    kept = [file for file in files if file.src_dir != config["docs_dir"]]  # the theme's
    wanted[ROOT / "docs" / "site.css"] = None
    for path, content in wanted.items():
        place = path.relative_to(ROOT).as_posix()
        if content:
            level = InclusionLevel.NOT_IN_NAV
            kept.append(File.generated(config, place, content=content, inclusion=level))
        else:
            kept.append(File.generated(config, place, abs_src_path=str(path)))
    return Files(kept)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Makes links to folders links to their pages. Called by MkDocs."""
    return FOLDER.sub(r"\1README.md", markdown)


def folder_page(folder: Path) -> str:
    """A page with the code in a folder."""
    parts = [f"# {folder.relative_to(ROOT)}"]
    for path in sorted(folder.glob("*.py")):
        parts.append(f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```")
    return "\n\n".join(parts)
