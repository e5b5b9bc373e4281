"""A script, or a module, runs in the scope of a strategy of logical devices."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, tensorflow as tf, tfloss
print(sys.argv[1:], __name__, tf.distribute.get_strategy().num_replicas_in_sync,
      tfloss.make_strategy() is tf.distribute.get_strategy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train.py", "--a"], ["-m", "train", "--a"]])
def test_the_script_gets_its_arguments_and_the_strategy(tmp_path, command):
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "TFLOSS_INSPECT_REPLICAS": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-m", "tfloss.app.script_on_replicas", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "['--a'] __main__ 3 True", done.stderr
