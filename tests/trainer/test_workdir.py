"""The directory of a run: what is written once it trains."""

import os
import socket
import subprocess
import sys

from tfloss.trainer import workdir


def test_what_describes_a_run_is_written_at_its_first_step(tmp_path):
    written = []
    workdir.write_when_trained(tmp_path, lambda: written.append("first"))
    workdir.write_when_trained(tmp_path, lambda: written.append("second"))
    workdir.write_deferred(None)
    workdir.write_deferred(tmp_path.parent)
    assert written == []
    workdir.write_deferred(tmp_path / "fold_1")  # a trainer in a directory below
    workdir.write_deferred(tmp_path)
    assert written == ["second"]


def test_links_at_names_that_can_be_guessed_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = f".tfloss_write_test_{os.getpid()}_{socket.gethostname()}"
    (tmp_path / name).symlink_to(victim)
    workdir.writable(tmp_path)
    assert victim.read_text() == "mine" and (tmp_path / name).is_symlink()


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, pathlib, sys; from tfloss.common import replacement as r\n"
        "with r.replacement(pathlib.Path(sys.argv[1]) / 'config.json'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path])
    assert len(list(tmp_path.iterdir())) == 1
    workdir.writable(tmp_path)
    assert not list(tmp_path.iterdir())
