"""What all trackers do: nothing is sent twice, and training doesn't depend on the server."""

import json
from pathlib import Path

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook, MetricsFile, SaveCheckpoint
from tfloss.hooks.tracker import Tracker, tracker_package


class Server:
    def __init__(self):
        self.runs, self.fails = {}, False


class Sends(Tracker):
    """Keeps what it sends, as a server does."""

    def __init__(self, server, flush_seconds=0.001, params=None):
        super().__init__(flush_seconds, params)
        self.server = server

    def open_run(self, run_id):
        run_id = run_id or f"run{len(self.server.runs)}"
        self.run = self.server.runs.setdefault(run_id, {"values": [], "params": {}, "ends": []})
        return run_id

    def send(self, logs):
        if self.server.fails:
            raise ConnectionError("no route")
        for step, _, values in logs:
            self.run["values"] += [(step, k) for k in values if k == "losses/total" or "val" in k]

    def send_params(self, params):
        self.run["params"].update(params)

    def close_run(self, status):
        self.run["ends"].append(status)


class Acts(Hook):
    def __init__(self, at, act):
        self.every, self.act = Every(steps=at), act

    def after_step(self, step):
        self.act(self.trainer, step)


def kill(trainer, step):
    raise SystemExit


def train(server, steps, *hooks, workdir=None, **options):
    hooks = [*hooks, Sends(server, **options)]
    if workdir:
        hooks.append(SaveCheckpoint(Every(steps=4), keep_last=None))
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), hooks=hooks, workdir=workdir, log_every=2, jit=False,
        default_hooks=False,
    )  # fmt: skip
    trainer.train(rows([1.0], 1), steps)
    return trainer


def evaluates(trainer, step):
    trainer.log(step, {"val/a": 1.0})


def test_a_killed_run_sends_everything_once(tmp_path):
    server = Server()
    with pytest.raises(SystemExit):
        train(server, 12, Acts(6, evaluates), Acts(7, kill), workdir=tmp_path)
    assert json.loads((tmp_path / "sends.json").read_text())["run"] == "run0"
    # It continues from the checkpoint of step 4, so step 6 is trained twice.
    train(server, 12, Acts(6, evaluates), workdir=tmp_path, params={"late": 1})
    expected = [(s, "losses/total") for s in (2, 4, 6, 8, 10, 12)]
    expected = [*expected[:3], (6, "val/a"), *expected[3:], (12, "val/a")]
    assert server.runs == {
        "run0": {"values": expected, "params": {"late": 1}, "ends": ["failed", "finished"]}
    }


def test_a_value_of_the_last_step_that_was_not_sent_is_sent(tmp_path):
    server = Server()
    with pytest.raises(SystemExit):
        train(server, 6, Acts(6, kill), workdir=tmp_path)
    train(server, 6, Acts(6, evaluates), workdir=tmp_path)
    values = server.runs["run0"]["values"]
    assert values == [(2, "losses/total"), (4, "losses/total"), (6, "losses/total"), (6, "val/a")]


def test_training_from_step_0_is_a_new_run(tmp_path):
    server = Server()
    train(server, 2, workdir=tmp_path, params={"rate": 0.1})
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "config.json").write_text('{"flags": {"seed": 3, "net": {"wide": true}}}')
    train(server, 2, workdir=tmp_path)
    assert list(server.runs) == ["run0", "run1"]
    assert server.runs["run0"]["params"] == {"rate": 0.1}
    assert server.runs["run1"]["params"] == {"flags.seed": 3, "flags.net.wide": True}


def test_a_second_call_continues_the_run():
    server = Server()
    trainer = train(server, 2)
    trainer.train(rows([1.0], 1), 4)
    assert server.runs == {
        "run0": {
            "values": [(2, "losses/total"), (4, "losses/total")],
            "params": {},
            "ends": ["finished"] * 2,
        }
    }


def test_a_server_that_fails_gets_the_values_later():
    server = Server()
    server.fails = True

    def comes_back(trainer, step):
        server.fails = False

    with pytest.warns(UserWarning, match="Sends can't send: ConnectionError: no route") as found:
        train(server, 8, Acts(7, comes_back))
    assert len([one for one in found if "can't send" in str(one.message)]) == 1
    assert server.runs["run0"]["values"] == [(step, "losses/total") for step in (2, 4, 6, 8)]


def test_what_is_lost_at_the_end_is_said():
    server = Server()
    server.fails = True
    with pytest.warns(UserWarning, match="has lost 2 logs, from step 2 on"):
        train(server, 4)


def test_what_a_buffer_has_lost_is_sent_again(tmp_path):
    class Buffers(Sends):
        def received(self):
            return 2

    server = Server()
    with pytest.raises(SystemExit):
        train(server, 12, MetricsFile(), Acts(6, evaluates), Acts(7, kill), workdir=tmp_path)
    (tmp_path / "sends.json").rename(tmp_path / "buffers.json")
    server.runs["run0"]["values"] = [(2, "losses/total")]  # the rest is lost
    hooks = [MetricsFile(), Acts(6, evaluates), Buffers(server), SaveCheckpoint(Every(steps=100))]
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), hooks=hooks, workdir=tmp_path, log_every=2, jit=False,
        default_hooks=False,
    )  # fmt: skip
    trainer.train(rows([1.0], 1), 8)
    expected = [(2, "losses/total"), (4, "losses/total"), (6, "losses/total"), (6, "val/a")]
    assert server.runs["run0"]["values"] == [*expected, (8, "losses/total")]


def test_a_missing_package_says_what_to_install():
    with pytest.raises(ImportError, match=r"pip install 'tfloss\[no_such_tracker\]'"):
        tracker_package("no_such_tracker")


def test_the_file_is_in_the_workdir_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Server(), 2)
    assert not list(Path().iterdir())


def test_training_that_goes_back_is_another_run(tmp_path):
    """A server can't remove what it got of the later steps."""
    server = Server()
    train(server, 8, workdir=tmp_path)
    hooks = [Sends(server), SaveCheckpoint(Every(steps=4), keep_last=None)]
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), hooks=hooks, workdir=tmp_path, log_every=2, jit=False,
        default_hooks=False,
    )  # fmt: skip
    trainer.restore(rows([1.0], 1), step=4)
    trainer.train(rows([1.0], 1), 6)
    train(server, 8, workdir=tmp_path)  # resumes the second run
    steps = {name: [step for step, _ in run["values"]] for name, run in server.runs.items()}
    assert steps == {"run0": [2, 4, 6, 8], "run1": [6, 8]}
