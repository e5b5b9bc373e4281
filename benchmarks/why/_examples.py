"""Loads modules of the examples under unique names: each directory has a model.py."""

import importlib.util
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load(path: str) -> types.ModuleType:
    """Loads a module of an example.

    Args:
      path: The file under examples/, such as "detector/model.py".

    Returns:
      The module.
    """
    name = "example_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
