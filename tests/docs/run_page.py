"""Runs the Python blocks of a page as one program. A script for `tests/fork.py`.

python tests/docs/run_page.py PAGE FOLDER [SECTION]

With the title of a section, only the blocks of that section run.

The program runs in FOLDER. Its lines have the numbers that they have on the page. A block with
a title, as in ```python title="model.py", becomes a file of FOLDER instead. What a page takes
for granted is in `pages/<page>.py`, which runs first. If that file has a function `check`, it
gets the variables of the program at the end.

A block that imports a package of OPTIONAL is left out where that is not installed.

A call of `train` does two updates, or one epoch, unless the file says `CAPPED = False`.
"""

import importlib.util
import os
import re
import runpy
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```python(?: title=\"([^\"]+)\")?\n(.*?)^ *```$", re.M | re.S)
# Packages that the pages show and that no extra of tfloss installs.
OPTIONAL = ("datasets", "fastai", "grain", "lightning", "orbit", "torch", "transformers")


def blocks(text: str) -> list[tuple[int, str | None, str]]:
    """The line number, the title and the code of each Python block."""
    return [
        (text.count("\n", 0, found.start(3)) + 1, found[2], textwrap.dedent(found[3]))
        for found in BLOCK.finditer(text)
    ]


def section_of(text: str, title: str) -> str:
    """A section of a page, in the lines in which it is there."""
    before, heading, rest = text.partition(f"\n## {title}\n")
    assert heading, f"no section {title!r}"
    return "\n" * before.count("\n") + heading + rest.partition("\n## ")[0]


def setup_of(page: str) -> Path:
    """The file that runs before a page: that of docs/from/keras.md is pages/from_keras.py."""
    name = page.removeprefix("docs/").removesuffix(".md").lower().replace("/", "_")
    return Path(__file__).parent / "pages" / f"{name}.py"


def is_installed(code: str) -> bool:
    """Whether the optional packages that a block imports are installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    return all(importlib.util.find_spec(name) for name in imported if name in OPTIONAL)


def program(text: str) -> str:
    """The untitled blocks of a page, in the lines in which they are there."""
    lines = [""] * (text.count("\n") + 1)
    for line, title, code in blocks(text):
        if title is None and is_installed(code):
            lines[line - 1 : line - 1 + code.count("\n")] = code.splitlines()
    return "\n".join(lines)


def cap_training() -> None:
    """Makes each call of `train` short."""
    import tfloss

    train = tfloss.Trainer.train

    def capped(self, data, steps=None, *, epochs=None, **options):
        if epochs is not None:
            return train(self, data, epochs=min(epochs, 1), **options)
        return train(self, data, min(steps, self.step + 2), **options)

    tfloss.Trainer.train = capped


def main(page: str, folder: str, section: str = "") -> None:
    sys.path.insert(0, str(ROOT))
    import keras
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    keras.utils.set_random_seed(0)
    text = (ROOT / page).read_text(encoding="utf-8")
    text = section_of(text, section) if section else text
    for _, title, code in blocks(text):
        if title is not None:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(code)
    setup = runpy.run_path(str(setup_of(page))) if setup_of(page).exists() else {}
    if setup.get("CAPPED", True):
        cap_training()
    file = Path(folder, page.replace("/", "_").replace(".md", "_md.py"))
    file.write_text(program(text))
    given = {name: value for name, value in setup.items() if not name.startswith("__")}
    page_variables = runpy.run_path(str(file), init_globals=given, run_name="__main__")
    if "check" in setup:
        setup["check"](page_variables)


if __name__ == "__main__":
    main(*sys.argv[1:])
