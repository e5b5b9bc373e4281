"""What is installed is what is declared, and CI runs the README."""

import ast
import importlib.metadata
import importlib.resources
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import tfloss.version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tfloss"
README_COMMANDS = ROOT / ".ci" / "readme_commands.py"

readme_commands = runpy.run_path(str(README_COMMANDS))["readme_commands"]

# Imported name -> distribution, where they differ.
DISTRIBUTIONS = {"absl": "absl-py", "tensorflow_datasets": "tensorflow-datasets"}
# Used by single modules that say what to install: from these extras.
EXTRAS_ONLY = {"sklearn", "PIL", "pycocotools", "matplotlib"}
GIVEN = {"IPython"}  # where tfloss imports it, it runs already


def requirements(extra: str | None = None) -> set[str]:
    """Names of the requirements in the installed metadata, of one extra or of no extra."""
    found = set()
    for requirement in importlib.metadata.requires("tfloss") or []:
        name = re.match(r"[\w.-]+", requirement)
        marker = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        assert name
        if (marker and marker[1]) == extra:
            found.add(name[0].lower().replace("_", "-"))
    return found


def imported_by(path: Path) -> set[str]:
    """Top-level names of everything that a source file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_version_has_one_source():
    assert importlib.metadata.version("tfloss") == tfloss.version.__version__


def test_the_type_marker_is_beside_the_package():
    assert importlib.resources.files("tfloss").joinpath("py.typed").is_file()


def test_the_command_starts():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="tfloss")
    assert script.value == "tfloss.cli:main"
    assert callable(script.load())


def test_every_import_is_a_declared_requirement():
    declared = requirements()
    for path in PACKAGE.rglob("*.py"):
        for name in imported_by(path) - sys.stdlib_module_names - {"tfloss"} - EXTRAS_ONLY - GIVEN:
            distribution = DISTRIBUTIONS.get(name, name).lower().replace("_", "-")
            assert distribution in declared, f"{path}: setup.py doesn't require {distribution}"


def test_what_single_modules_need_is_only_in_extras():
    names = {"scikit-learn", "pycocotools", "pillow", "palmerpenguins"}
    assert not names & requirements()
    assert names <= requirements("examples") & requirements("test")
    assert requirements("detection") == {"pycocotools", "pillow"}


GOOD = """\
# tfloss

```python
print("pip install -e")  # not a shell block
```

```sh
tensorboard --logdir runs
```

```bash
# trains
pip install -e . && python train.py

pip install -e '.[test]' && pytest
```

```bash
pip install -e '.[docs]'
```
"""


def test_the_readmes_commands_are_those_of_its_first_shell_block_that_installs():
    expected = ["pip install -e . && python train.py", "pip install -e '.[test]' && pytest"]
    assert readme_commands(GOOD) == expected
    assert readme_commands(GOOD.replace("```bash\n# trains", "```\n# trains")) == expected
    assert readme_commands(GOOD.replace("\n", "\r\n")) == expected
    assert readme_commands(GOOD.replace("```", "~~~~")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no shell code block"),
        ("pip install -e . && pip install -e '.[test]'", "no shell code block"),
        ("```python\npip install -e .\npip install -e .\n```\n", "no shell code block"),
        ("```\npip install -e .\n", "no shell code block"),  # a fence that is never closed
        ("```sh\npip install -e .\n```\n", "It holds 1:\n  pip install -e ."),
        ("```\npip install -e .\npip install -e a\npip install -e b\n```\n", "It holds 3:"),
        ("```\npip install -e .\npip install -e a\npytest\n```\n", "It holds 3:"),
        ("```\npip install -e . && \\\npytest\n```\n", "It holds 2:"),
    ],
)
def test_a_readme_without_exactly_two_commands_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        readme_commands(text)


def test_the_extractor_fails_as_a_program_too(tmp_path: Path):
    def extract(path: Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, README_COMMANDS, path], capture_output=True, text=True, check=False
        )

    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(GOOD)
    bad.write_text("nothing")
    assert extract(good).stdout.count("\n") == 2
    for path in (bad, tmp_path / "missing.md"):
        done = extract(path)
        assert done.returncode == 1 and not done.stdout and path.name in done.stderr


def test_the_readme_has_its_two_commands():
    train, test = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "--workdir=runs/digits" in train
    assert "pytest" in test
