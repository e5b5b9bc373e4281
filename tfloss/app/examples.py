"""The examples of the repository, which the wheel has too: `tfloss examples` copies one.

Host code, without TensorFlow. A copy has the paths of the repository, so that the commands of the
docs hold for it: `examples/digits/train.py` and `configs/digits.py`.
"""

import ast
import re
import shutil
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_COMMAND = re.compile(r"^ *((?:\w+=\S+ )?python examples/.*(?:\\\n.*)*)", re.M)


def root() -> Path:
    """Returns the folder with `examples` and `configs`: of the wheel, or else the repository.

    Raises:
      FileNotFoundError: This installation has neither.
    """
    for folder in (_PACKAGE / "_examples", _PACKAGE.parent):
        if (folder / "examples" / "digits" / "train.py").is_file():
            return folder
    raise FileNotFoundError(f"This installation of tfloss has no examples: {_PACKAGE}.")


def listed() -> dict[str, str]:
    """Returns the names of all examples, in alphabetical order, each with what it trains."""
    files = sorted(root().glob("examples/*/train.py"))
    return {file.parent.name: _summary(file) for file in files}


def copy(name: str, to: Path) -> list[str]:
    """Copies an example and its configs.

    Args:
      name: Name of the example, such as "digits".
      to: Folder that gets `examples/<name>` and `configs`.

    Returns:
      The commands that train it, for the folder `to`.

    Raises:
      ValueError: There is no such example.
      FileExistsError: A file of this name is there. Nothing was copied.
    """
    if name not in listed():
        raise ValueError(f"There is no example {name!r}. There are: {', '.join(listed())}.")
    configs = [file for file in root().glob("configs/*.py") if f"examples/{name}/" in _text(file)]
    files = [*sorted(root().glob(f"examples/{name}/*.py")), *sorted(configs)]
    copies = {file: to / file.relative_to(root()) for file in files}
    there = [str(path) for path in copies.values() if path.exists()]
    if there:
        raise FileExistsError(f"These files exist already: {', '.join(there)}. Nothing was copied.")
    for file, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
    return [command for file in configs for command in _COMMAND.findall(_text(file))]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _summary(file: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(_text(file))) or "").partition("\n")[0]
