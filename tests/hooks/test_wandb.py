"""In offline mode, with real processes that are killed; the files are read as wandb writes them."""

import json
import os
import signal
import struct
import subprocess
import sys

import pytest

from tfloss.hooks import WandB

wandb = pytest.importorskip("wandb")

SCRIPT = """
import os, signal, sys
import keras, tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook, MetricsFile, SaveCheckpoint, WandB

class Kill(Hook):
    every = Every(steps=1)
    def after_step(self, step):
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

tracker = WandB("lines", params={"rate": 0.1}, flush_seconds=0.001, mode="offline")
hooks = [tracker, MetricsFile(), SaveCheckpoint(Every(steps=4)), Kill()]
trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), hooks=hooks, workdir=sys.argv[1],
                         log_every=2, jit=False, default_hooks=False)
trainer.train(rows([1.0], 1), 12)
"""


def run(*arguments):
    environment = os.environ | {"WANDB_SILENT": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def records(path):
    """The records of a .wandb file: LevelDB's log format, after a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def contents(workdir):
    """`{id}`, the config and the history of all files of a workdir, in the order of time."""
    ids, config, history = set(), {}, []
    for path in sorted(
        workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime
    ):
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config |= {
                    "/".join([one.key, *one.nested_key]).strip("/"): one.value_json
                    for one in record.run.config.update
                }
            elif record.WhichOneof("record_type") == "config":
                config |= {
                    "/".join([one.key, *one.nested_key]).strip("/"): one.value_json
                    for one in record.config.update
                }
            elif record.WhichOneof("record_type") == "history":
                values = {
                    one.key or "/".join(one.nested_key): json.loads(one.value_json)
                    for one in record.history.item
                }
                history.append((values["_step"], round(values["losses/total"], 4)))
    return ids, config, history


@pytest.mark.slow
def test_a_killed_run_is_one_run_with_every_value_once(tmp_path):
    workdir = tmp_path / "first"
    killed = run(workdir, 7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(workdir, -1)
    assert done.returncode == 0, done.stderr
    ids, config, history = contents(workdir)
    assert ids == {json.loads((workdir / "wandb.json").read_text())["run"]}
    assert config["rate"] == "0.1"
    assert history == [
        (step, pytest.approx(1.15 - 0.1 * step, abs=1e-4)) for step in range(2, 13, 2)
    ]


def test_an_active_run_is_used_and_not_finished(tmp_path):
    settings = wandb.Settings(console="off", silent=True)
    with wandb.init(mode="offline", dir=str(tmp_path), settings=settings) as active:
        hook = WandB()
        assert hook.open_run(None) == active.id
        hook.send_params({"rate": 0.1})
        hook.close_run("finished")
        assert wandb.run is active and active.config["rate"] == 0.1


def test_the_hook_chooses_the_id():
    with pytest.raises(TypeError, match=r"WandB\(id=...\): the hook chooses it"):
        WandB(id="x")
