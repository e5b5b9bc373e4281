"""The site of the docs: `mkdocs build --strict` succeeds, and its links lead somewhere."""

import html.parser
import re
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tfloss

ROOT = Path(__file__).parents[2]


class Links(html.parser.HTMLParser):
    """Collects what a page links to, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path):
    pages = {page: Links(page.read_text()) for page in site.rglob("*.html")}
    assert len(pages) > 30
    broken = []
    for page, found in pages.items():
        if page.name == "404.html":  # is served at any address, so its links are absolute
            continue
        for link in found.links:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                broken.append(f"{page.relative_to(site)}: {link}")
            elif url.fragment and target in pages:
                if unquote(url.fragment) not in pages[target].anchors:
                    broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


@pytest.mark.slow
def test_nothing_is_loaded_from_other_servers(site: Path):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img)[^>]*src=[\"']?https?://[^>]*", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*https?://[^>]*", text)
        assert not loaded, page


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    described = {line.split()[0] for line in inventory.splitlines()}
    public = {f"tfloss.{name}" for name in tfloss.__all__ if name != "__version__"}
    for module in (tfloss.adapters, tfloss.app, tfloss.data, tfloss.hooks):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    # The functions that are named as their modules have the modules' names in front.
    described |= {
        name.rpartition(".")[0]
        for name in described
        if name.split(".")[-2:-1] == name.split(".")[-1:]
    }
    public |= {f"tfloss.detection.{path.stem}" for path in ROOT.glob("tfloss/detection/[a-z]*.py")}
    assert not public - described


def test_the_reference_has_every_public_module():
    """This needs no MkDocs: each module has a page, and each page is in the navigation."""
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("[a-z]*.md")}
    modules = {
        path.split(".")[-1]
        for path in re.findall(
            r"^::: (tfloss(?:\.\w+)?)$",
            "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")),
            re.M,
        )
    }
    assert pages == modules
    assert set(tfloss._MODULES) <= modules
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f"docs/api/{page}.md" in navigation for page in pages)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]
    named = [page.relative_to(ROOT).as_posix() for page in pages]
    assert not [
        name for name in named if not re.search(rf"[:-] {re.escape(name)}$", navigation, re.M)
    ]
