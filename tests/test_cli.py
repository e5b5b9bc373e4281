"""The `tfloss` command."""

import sys
import types
from importlib import metadata

import pytest

from tfloss import cli
from tfloss.version import __version__


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == (
        f"tfloss {__version__}, tensorflow {metadata.version('tensorflow')}, "
        f"keras {metadata.version('keras')}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["reply"], "invalid choice: 'reply'"),
        (["replay"], "the following arguments are required: workdir"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)

    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--help"])

    assert error.value.code == 0
    out = capsys.readouterr().out
    assert "replay" in out and "version" in out


def test_replay_gets_the_workdir_and_gives_the_exit_code(tmp_path, monkeypatch):
    seen = []
    fake = types.ModuleType("tfloss.replay")
    fake.main = lambda workdir: seen.append(workdir) or 3
    monkeypatch.setitem(sys.modules, "tfloss.replay", fake)
    monkeypatch.setattr("tfloss.replay", fake, raising=False)

    assert cli.main(["replay", str(tmp_path)]) == 3
    assert seen == [tmp_path]


def test_replay_of_a_folder_that_is_not_there(tmp_path, capsys):
    assert cli.main(["replay", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == f"tfloss replay: there is no folder '{tmp_path}/runs'.\n"
