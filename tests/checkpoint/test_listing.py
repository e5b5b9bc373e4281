"""The table of a run's checkpoints."""

import os
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory, listing
from tfloss.errors import CheckpointError


def run_of(path, hooks=None):
    directory = CheckpointDirectory(path / "checkpoints")
    for step in (100, 200, 1000):
        directory.save(step, {"v": tf.Variable(tf.ones([500_000]))}, {"hooks": hooks or {}})
    now = time.time()
    for step, age in ((100, 3 * 86400), (200, 2.4 * 3600), (1000, 119)):
        os.utime(directory.at(step), (now - age, now - age))
    return directory


def test_steps_ages_sizes_what_is_wrong_and_the_best(tmp_path, capsys):
    state = {"metric": "val/accuracy", "best": [[0.9712, 200], [0.9, 1000]]}
    directory = run_of(tmp_path, {"Evaluate": {"step": 3}, "SaveCheckpoint": state})
    index = directory.at(100) / "variables.index"
    index.write_bytes(b"")
    os.utime(directory.at(100), (time.time() - 3 * 86400,) * 2)
    listing.print_checkpoints(listing.find_checkpoints(tmp_path))
    wrong = "variables.index has 0 bytes, but "
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "age", "size", "state", "val/accuracy"]
    assert lines[1].startswith(f"100   3 d    2.0 MB  {wrong}")
    assert lines[2].split() == ["200", "2", "h", "2.0", "MB", "valid", "0.9712", "(best)"]
    assert lines[3].split() == ["1000", "119", "s", "2.0", "MB", "valid", "0.9"]
    assert lines[3].index("0.9") == lines[0].index("val/accuracy")


def test_what_is_deleted_meanwhile_is_left_out(tmp_path, capsys, monkeypatch):
    files = run_of(tmp_path)
    check = files.problem

    def problem(step):
        if step != 1000:
            files.delete(step)
        return check(step)

    monkeypatch.setattr(files, "problem", problem)
    listing.print_checkpoints(files)
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["1000"] and rows[0].endswith("valid")


def test_a_run_without_a_metric_and_a_directory_of_checkpoints(tmp_path, capsys):
    run_of(tmp_path)
    listing.print_checkpoints(listing.find_checkpoints(tmp_path / "checkpoints"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "best" and lines[1].endswith("valid")


def test_on_a_terminal_it_is_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    listing.print_table(["step", "state"], [["1", "[red] is no markup here"]])
    out = capsys.readouterr().out
    assert "[red] is no markup here" in out and "│" in out


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in .* or .*/checkpoints"):
        listing.find_checkpoints(tmp_path)


def test_it_needs_no_tensorflow(tmp_path):
    run_of(tmp_path)
    code = (
        "import sys; from tfloss import cli; status = cli.main(['checkpoints', sys.argv[1]]); "
        "sys.exit(status or 3 * bool({'tensorflow', 'keras', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["step", "100", "200", "1000"]


def test_another_metric(tmp_path, capsys):
    directory = CheckpointDirectory(tmp_path)
    for step, value in ((1, 0.5), (2, 0.25), (3, None)):
        metrics = {} if value is None else {"val/loss": {"value": value, "mode": "min"}}
        directory.save(step, {"v": tf.Variable(1.0)}, {"metrics": metrics})
    listing.print_checkpoints(directory, "val/loss")
    lines = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["val/loss (min)", "0.5", "0.25 (best)", "valid"]
    with pytest.raises(CheckpointError, match="Did you mean 'val/loss'"):
        listing.print_checkpoints(directory, "val/los")
