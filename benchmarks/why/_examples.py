"""The examples' modules, under names of their own: there is a model.py in each folder."""

import importlib.util
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load(path: str) -> types.ModuleType:
    """A module of an example, such as "detector/model.py"."""
    name = "example_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
