"""`tfloss examples` lists the examples and copies one, from the repository and from a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tfloss import cli
from tfloss.app import examples

ROOT = Path(__file__).parents[2]
DIGITS = ["configs/digits.py"] + [f"examples/digits/{n}.py" for n in ("input", "model", "train")]
COMMAND = "python examples/digits/train.py --config=configs/digits.py --workdir=runs/digits"


def copied(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def test_the_list_has_all_examples(capsys):
    assert cli.main(["examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folders = {path.name for path in (ROOT / "examples").iterdir() if (path / "train.py").exists()}
    assert {line.split()[0] for line in lines} == folders
    assert any("handwritten digits" in line for line in lines)


def test_a_copy_has_the_files_and_the_command(tmp_path, capsys):
    assert cli.main(["examples", "digits", "--to", str(tmp_path)]) == 0
    assert copied(tmp_path) == DIGITS
    for name in DIGITS:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert capsys.readouterr().out.splitlines() == ["pip install 'tfloss[examples]'", COMMAND]


@pytest.mark.parametrize("name", examples.listed())
def test_every_example_has_a_config_and_a_command(name, tmp_path):
    commands = examples.copy(name, tmp_path)
    assert commands and list(tmp_path.glob("configs/*.py"))
    assert all(f"examples/{name}/train.py" in command for command in commands)


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("mine")
    assert cli.main(["examples", "digits", "--to", str(tmp_path)]) == 2
    assert "exist already" in capsys.readouterr().err
    assert copied(tmp_path) == ["configs/digits.py"]
    assert (tmp_path / "configs" / "digits.py").read_text() == "mine"


def test_an_unknown_name_is_answered_by_the_list(tmp_path, capsys):
    assert cli.main(["examples", "digit", "--to", str(tmp_path)]) == 2
    assert "There is no example 'digit'. There are: detector, digits," in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_has_the_examples(tmp_path):
    pytest.importorskip("setuptools")
    source, installed, work = (tmp_path / name for name in ("source", "installed", "work"))
    work.mkdir()
    for name in ("tfloss", "examples", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run([*build, "-w", str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("tfloss-*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    command = [sys.executable, "-m", "tfloss", "examples", "digits"]
    environment = {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and COMMAND in done.stdout, done.stderr
    assert copied(work) == DIGITS
