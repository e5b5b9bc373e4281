"""A notebook is executed and photographed: what its cell shows can be seen.

It needs the extra `pictures`, Chromium and chromedriver, and is skipped without them.
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def pictures():
    """The module `docs/pictures.py`."""
    needed = ("IPython", "ipykernel", "nbclient", "nbconvert", "nbformat", "selenium", "PIL")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    missing += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"A notebook can't be photographed here, without {', '.join(missing)}.")
    sys.path.insert(0, str(DOCS))
    try:
        import pictures

        yield pictures
    finally:
        sys.path.remove(str(DOCS))


def _cells(page):
    """The HTML of each cell's outputs."""
    return [
        cell.partition("jp-Cell-outputWrapper")[2]
        for cell in page.read_text().split('class="jp-Cell jp-CodeCell')[1:]
    ]


def _image(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.slow
def test_the_cells_of_the_docs_show_a_bar_a_table_curves_and_a_short_error(pictures, tmp_path):
    page = pictures.executed_notebook(tmp_path / "notebook")
    quiet, trained, failed = _cells(page)
    assert "jp-RenderedText" not in quiet and "stderr" not in quiet + trained
    (bar,) = re.findall("<progress (.*?)>", trained)
    assert 'max="1000"' in bar and 'value="1000"' in bar
    table = re.findall("<tr>(.*?)</tr>", trained)
    names = re.findall("<th>(.*?)</th>", table[0])
    rows = [re.findall("<td>(.*?)</td>", row) for row in table[1:]]
    assert names == ["step", "cross_entropy", "z_loss", "total"]
    assert [int(row[0]) for row in rows] == list(range(100, 1001, 100))
    totals = [float(row[-1]) for row in rows]
    assert totals[-1] < 0.2 * totals[0]
    assert "parameters" in trained and "step 1000/1000" in trained
    assert re.search("workdir +runs/notebook", trained)
    assert re.search(r'<img[^>]* src="data:image/png;base64,', trained) or "<svg" in trained
    assert "KeyError" in failed and failed.count("Cell") < 10

    files = {1: tmp_path / "trained.png", 2: tmp_path / "failed.png"}
    pictures.photograph_cells(page, files)
    shown, error = (_image(file) for file in files.values())
    assert min(shown.shape[:2]) > 1.4 * 700 and error.shape[1] == shown.shape[1]
    # The bar is a blue line over the whole width. The curves are blue, too, and below the table.
    blue = (shown[..., 2] > 150) & (shown[..., 0] < 100)
    line = np.flatnonzero(blue.mean(1) > 0.9)
    assert 4 <= line.size <= 40
    assert blue[line[-1] + 400 :].sum() > 1000
    assert 0.02 < (shown.sum(-1) < 300).mean() < 0.3  # text
    red_ground = (error[..., 0] > 240) & (error[..., 1] < 230) & (error[..., 2] < 230)
    assert red_ground.mean() > 0.3  # the traceback
