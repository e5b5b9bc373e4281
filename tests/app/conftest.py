"""A config file, and a parser of command lines that use it."""

import pytest
from absl import flags

from tfloss.app.flags import Options, parse_flags

RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(
        {"steps": 100, "smooth": False, "optimizer": {"name": "adam", "learning_rate": 1e-3}}
    )
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def parse(recipe, tmp_path):
    """Parses these arguments, with a config and a workdir, in a set of flags of its own."""

    def run(*arguments: str) -> Options:
        argv = ["train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *arguments]
        return parse_flags(argv, values=flags.FlagValues())

    return run
