"""The `tfloss` command."""

import subprocess
import sys
from importlib import metadata

import pytest
import tensorflow as tf

from tfloss import cli
from tfloss.app import replay_command
from tfloss.checkpoint import CheckpointDirectory
from tfloss.version import __version__

VERSIONS = (
    f"tfloss {__version__}, tensorflow {metadata.version('tensorflow')}, "
    f"keras {metadata.version('keras')}\n"
)


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == VERSIONS


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, VERSIONS),
        (["--help"], 0, "usage: tfloss [-h] [--version] COMMAND ..."),
        (["replay", "--help"], 0, "usage: tfloss replay"),
        (["replay", "."], 1, "tfloss replay: no step is kept under ./nonfinite."),
        (["checkpoints", "."], 2, "tfloss checkpoints: There is no checkpoint in . or checkpoints"),
        (["checkpoints", ".", "--diff", "1", "2"], 2, "There is no checkpoint in"),
        (["compare", "."], 2, "tfloss compare: '.' has no metrics.jsonl"),
        (["launch", "--workers=2"], 2, "tfloss launch: the command is missing."),
    ],
)
def test_a_command_that_has_nothing_to_do_answers_without_tensorflow(
    arguments, code, text, tmp_path
):
    # None in sys.modules makes each import fail.
    script = (
        "import runpy, sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        f"sys.argv = ['tfloss', *{arguments!r}]\n"
        "runpy.run_module('tfloss', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert text in (done.stderr if code else done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["reply"], "invalid choice: 'reply'"),
        (["replay"], "the following arguments are required: workdir"),
        (["launch", "--", "true"], "the following arguments are required: --workers"),
        (["launch", "--workers=0", "--", "true"], "invalid number (from 1) value: '0'"),
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
    for command in ("launch", "replay", "checkpoints", "compare", "version"):
        assert command in out


def test_replay_gets_the_workdir_and_gives_the_exit_code(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        replay_command, "main", lambda workdir, yes: seen.append((workdir, yes)) or 3
    )

    assert cli.main(["replay", str(tmp_path)]) == 3
    assert cli.main(["replay", "--yes", str(tmp_path)]) == 3
    assert seen == [(tmp_path, False), (tmp_path, True)]


def test_replay_of_a_missing_directory(tmp_path, capsys):
    assert cli.main(["replay", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == f"tfloss replay: there is no directory '{tmp_path}/runs'.\n"


@pytest.mark.parametrize("between", [["--"], []])
def test_launch_gets_the_command_unchanged(between, monkeypatch):
    seen = []
    monkeypatch.setattr("tfloss.distribute.launch.run", lambda *given: seen.append(given) or 75)
    options = ["--workers=2", "--max-restarts", "3", *between]

    assert cli.main(["launch", *options, "python", "t.py", "--workers=9", "--", "x"]) == 75
    assert seen == [(["python", "t.py", "--workers=9", "--", "x"], 2, 3, 30)]


def test_launch_without_a_command(capsys):
    assert cli.main(["launch", "--workers=2", "--"]) == 2
    assert (
        "the command is missing. Add it at the end: -- python train.py ..."
        in capsys.readouterr().err
    )


def test_checkpoints_lists_and_compares(tmp_path, capsys):
    variable, directory = tf.Variable([3.0, 4.0]), CheckpointDirectory(tmp_path / "checkpoints")
    directory.save(1, {"v": variable})
    variable.assign([3.0, 3.5])
    directory.save(2, {"v": variable})

    assert cli.main(["checkpoints", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "1", "2"]
    assert cli.main(["checkpoints", str(tmp_path), "--diff", "1", "2"]) == 0
    assert capsys.readouterr().out == (
        "changed  largest difference  relative\n"
        "v        0.5                 0.1\n"
        "1 changed, 0 are equal\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no checkpoint in {path} or {path}/checkpoints."),
        (
            ["--metric", "a"],
            "No checkpoint has a value of 'a'. A checkpoint has the values that were logged at its "
            "own step: give SaveCheckpoint the same `every` as Evaluate.",
        ),
        (["--diff", "1", "9"], "There is no checkpoint of step 9. There are checkpoints of: 1."),
    ],
)
def test_missing_checkpoints(arguments, message, tmp_path, capsys):
    if arguments:
        CheckpointDirectory(tmp_path).save(1, {"v": tf.Variable(1.0)})

    assert cli.main(["checkpoints", str(tmp_path), *arguments]) == 2
    expected = f"tfloss checkpoints: {message.format(path=tmp_path)}\n"
    assert capsys.readouterr().err == expected
