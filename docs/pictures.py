"""Makes the screenshots of the docs: of the terminal, notebooks, TensorBoard and inspection pages.

    python docs/pictures.py                     # all of them
    python docs/pictures.py notebook inspect    # some of them

The runs are in build/pictures; runs that are finished there are used again. This needs the
extra `pictures`, and Chromium with chromedriver (see `docs/browser.py`).
"""

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from browser import Browser  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
BUILD = ROOT / "build" / "pictures"
WIDTH = 760  # of a column of the site, in pixels of CSS
SCALE = 1.5
DIGITS = ["examples/digits/train.py", "--config=configs/digits.py", "--workdir=runs/digits"]

# The cells of the notebook in docs/notebooks.md.
CELLS = (
    """\
import tfloss
tfloss.quiet()  # TensorFlow's messages would be red boxes here
import keras, sklearn.datasets, tensorflow as tf
digits = sklearn.datasets.load_digits()
data = {"image": (digits.images / 16).astype("float32"), "label": digits.target}
source = tfloss.data.Source(data, batch_size=64, seed=0)""",
    """\
class Classifier(keras.Model):
    def __init__(self):
        super().__init__(name="classifier")
        self.hidden = keras.layers.Dense(32, "relu", name="hidden")
        self.head = keras.layers.Dense(10, name="head")

    def call(self, batch, training=False):
        flat = tf.reshape(batch["image"], [-1, 64])
        logits = self.head(self.hidden(flat))
        if not training:
            return tf.nn.softmax(logits)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        sizes = tf.reduce_logsumexp(logits, -1) ** 2
        return {
            "cross_entropy": tf.reduce_mean(loss),
            "z_loss": 1e-3 * tf.reduce_mean(sizes),
        }

adam = keras.optimizers.Adam(3e-3)
trainer = tfloss.Trainer(Classifier(), adam, workdir="runs/notebook")
trainer.train(source, steps=1_000)""",
    """\
class Wrong(Classifier):
    def call(self, batch, training=False):
        return super().call({"image": batch["images"]}, training)

tfloss.Trainer(Wrong(), keras.optimizers.Adam(3e-3)).train(source, steps=1_000)""",
)


def terminal() -> None:
    """Pictures of the terminal: while the digits example trains, and at the end."""
    from terminal_picture import END

    shutil.rmtree(BUILD / "runs/digits", ignore_errors=True)
    if not (BUILD / "data").exists():  # what is printed when data are prepared is of no interest
        subprocess.run(["python", *DIGITS[:2], "--workdir=runs/x", "--max_steps=1"], cwd=BUILD)
    digits(
        {r"step [67]\d\d/1000.*ETA": PICTURES / "training.svg", END: PICTURES / "trained.svg"},
    )


def notebook() -> None:
    """Executes a notebook, and photographs two cells of it."""
    page = executed_notebook(BUILD / "notebook")
    photograph_cells(page, {1: PICTURES / "notebook.png", 2: PICTURES / "notebook_error.png"})


def executed_notebook(place: Path) -> Path:
    """Executes `CELLS` in an empty directory, and returns the notebook's HTML page in it.

    Args:
      place: The directory. It is deleted first.
    """
    import nbclient
    import nbconvert
    import nbformat

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    book = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(place)}}
    nbclient.NotebookClient(book, timeout=600, allow_errors=True, resources=where).execute()
    exporter = nbconvert.HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    text, _ = exporter.from_notebook_node(book)
    page = place / "notebook.html"
    page.write_text(text.replace(f"{place}/", ""))  # not the paths of this machine
    return page


def photograph_cells(page: Path, pictures: Mapping[int, Path]) -> None:
    """Photographs cells of a notebook.

    Args:
      page: HTML page of the notebook.
      pictures: `{number of the cell, counted from 0: file}`.
    """
    with Browser() as browser:
        browser.open(page.as_uri(), width=WIDTH, height=600, scale=SCALE)
        browser.resize()
        for number, path in pictures.items():
            browser.photograph(path, browser.box(".jp-Cell", number))


def tensorboard() -> None:
    """Photographs TensorBoard with the run of the digits example."""
    digits({})
    with serving(BUILD / "runs/digits") as address, Browser() as browser:
        browser.open(f"{address}#timeseries", width=920, height=750, scale=SCALE)
        browser.wait("return document.querySelectorAll('scalar-card').length > 1")
        time.sleep(5)  # until the curves are drawn
        browser.click("button[aria-label='Toggle settings side pane']")
        browser.photograph(PICTURES / "tensorboard.png", (0, 0, 920, 700))


def inspect() -> None:
    """Photographs the HTML page of an inspection: five tasks on penguins."""
    page = BUILD / "inspection.html"
    command = [sys.executable, "-m", "tfloss", "inspect", f"--html={page}", "--", "python"]
    script = ["examples/penguins/train.py", "--config=configs/penguins.py"]
    subprocess.run([*command, *script, "--workdir=runs/inspected"], cwd=BUILD, check=True)
    text = page.read_text()
    for folder in (BUILD, ROOT):  # the paths on this machine
        text = text.replace(f"{folder}/", "")
    page.write_text(text)
    with Browser() as browser:
        browser.open(page.as_uri(), width=900, height=870, scale=1.3)
        browser.photograph(PICTURES / "inspection.png")


def digits(pictures: Mapping[str, Path]) -> None:
    """Runs the digits example, unless it has run."""
    from terminal_picture import record

    if not (BUILD / "runs/digits/export").exists():
        record(["python", *DIGITS], pictures, BUILD)


@contextlib.contextmanager
def serving(logdir: Path) -> Generator[str]:
    """Runs TensorBoard, and yields its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", f"--port={port}"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}/"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                tags = urllib.request.urlopen(f"{address}data/plugin/scalars/tags").read()
                if b"val" in tags and b"test" in tags:  # it reads the files in a thread
                    break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


PAGES = {one.__name__: one for one in (terminal, notebook, tensorboard, inspect)}


def main() -> None:
    """Reads the command line, and makes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PAGES))
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("examples", "configs"):  # so that the commands are those of the docs
        if not (BUILD / name).exists():
            (BUILD / name).symlink_to(ROOT / name)
    for name in parser.parse_args().names or PAGES:
        PAGES[name]()


if __name__ == "__main__":
    main()
