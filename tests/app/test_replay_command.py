"""`tfloss replay` in its own process. tests/test_replay.py runs whole scripts with it."""

import json

import pytest

from tfloss.app import replay_command


def test_the_newest_step_is_replayed_in_the_directory_of_the_run(tmp_path, capfd):
    for step in (3, 20):
        kept = tmp_path / f"run/nonfinite/step_{step:08d}"
        kept.mkdir(parents=True)
        command = ["sh", "-c", 'pwd; echo $TFLOSS_REPLAY > "$TFLOSS_REPLAY/replay.txt"']
        report = {"command": command, "directory": str(tmp_path)}
        (kept / "report.json").write_text(json.dumps(report))

    assert replay_command.main(tmp_path / "run", yes=True) == 0
    assert (kept / "replay.txt").read_text() == f"{kept}\n"
    assert not list(tmp_path.glob("run/nonfinite/step_00000003/replay.txt"))
    assert capfd.readouterr().out.endswith(f"\n{tmp_path}\n")


@pytest.mark.parametrize("typed", ["n", ""])
def test_nothing_runs_without_agreement(tmp_path, capsys, monkeypatch, typed):
    kept = tmp_path / "nonfinite/step_00000003"
    kept.mkdir(parents=True)
    report = {"command": ["touch", "ran"], "directory": str(tmp_path)}
    (kept / "report.json").write_text(json.dumps(report))
    assert replay_command.main(tmp_path) == 2
    assert "standard input is no terminal" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: typed)
    assert replay_command.main(tmp_path) == 2
    assert not (tmp_path / "ran").exists()
