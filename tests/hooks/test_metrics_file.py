import json
import os

import pytest

from tests.toys import NO_DATA
from tfloss.hooks import Evaluate, MetricsFile
from tfloss.hooks.metrics_file import line_windows


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_log_is_a_line_readable_at_once(make_trainer, tmp_path, clock):
    trainer = make_trainer([MetricsFile(clock=clock)], workdir=tmp_path)
    trainer.begin(10)
    assert not (tmp_path / "metrics.jsonl").exists()
    trainer.log(5, {"losses/total": 0.5, "accuracy": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 5, "time": 1000.0, "losses/total": 0.5, "accuracy": 1.0}\n'
    )
    clock.now = 1002.5
    trainer.log(10, {"losses/total": 0.25})
    trainer.log(10, {})  # summaries only
    trainer.end()
    assert lines(tmp_path / "metrics.jsonl")[1:] == [
        {"step": 10, "time": 1002.5, "losses/total": 0.25}
    ]


def test_values_that_are_not_finite_are_strings_that_float_reads(make_trainer, tmp_path):
    trainer = make_trainer([MetricsFile(tmp_path / "sub/m.jsonl")])
    trainer.begin(1)
    trainer.log(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    (record,) = lines(tmp_path / "sub/m.jsonl")
    assert (record["a"], record["b"], record["c"]) == ("nan", "inf", "-inf")
    assert float(record["c"]) == -float("inf")


def test_a_resumed_run_has_each_line_once(make_trainer, tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = make_trainer([MetricsFile()], workdir=tmp_path)
    trainer.begin(4)
    for step in (1, 2, 3):
        trainer.log(step, {"a": float(step)})
    trainer.log(2, {"val/a": 0.5})
    trainer.end()
    path.write_text(path.read_text() + '{"step": 4, "ti')  # killed while it wrote
    again = make_trainer([MetricsFile()], workdir=tmp_path, step=2)
    again.begin(3)
    assert [record["step"] for record in lines(path)] == [1, 2, 2]
    again.log(3, {"a": -3.0})
    again.end()
    assert [(r["step"], r.get("a")) for r in lines(path)] == [
        (1, 1.0),
        (2, 2.0),
        (2, None),
        (3, -3.0),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_run_from_step_0_keeps_the_logs_of_older_ones(make_trainer, tmp_path):
    for _ in range(3):
        trainer = make_trainer([MetricsFile()], workdir=tmp_path)
        trainer.begin(1)
        trainer.log(1, {"a": 0.0})
        trainer.end()
    names = ["metrics.jsonl", "superseded.1.metrics.jsonl", "superseded.metrics.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert all(len(lines(tmp_path / name)) == 1 for name in names)


def test_logs_of_later_hooks_at_the_end_are_written(make_trainer, tmp_path):
    hooks = [MetricsFile(), Evaluate(NO_DATA, {})]
    trainer = make_trainer(hooks, workdir=tmp_path, results={2: {"accuracy": 0.5}})
    trainer.train(2)
    assert [record["val/accuracy"] for record in lines(tmp_path / "metrics.jsonl")] == [0.5]
    assert hooks[0]._file is None


def test_its_own_fields_cannot_be_logged(make_trainer, tmp_path):
    trainer = make_trainer([MetricsFile()], workdir=tmp_path)
    trainer.begin(1)
    with pytest.raises(ValueError, match="named 'time'.*'my_time'"):
        trainer.log(1, {"time": 1.0})


def test_it_needs_a_path(make_trainer):
    with pytest.raises(ValueError, match=r"Give the Trainer a workdir, or use MetricsFile\(path\)"):
        make_trainer([MetricsFile()]).begin(1)


def test_consecutive_steps_are_one_line_each(make_trainer, tmp_path, clock):
    hook = MetricsFile(clock=clock)
    trainer = make_trainer([hook], workdir=tmp_path)
    trainer.begin(10)
    for step, values in [(1, {"a": 1.0}), (2, {}), (3, {"a": float("nan")})]:
        hook.on_log(step, values, ())
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "time": 1000.0, "a": 1.0},
        {"step": 3, "time": 1000.0, "a": "nan"},
    ]
    trainer.end()


def test_a_resumed_run_removes_only_its_own_lines(make_trainer, tmp_path, clock):
    path = tmp_path / "metrics.jsonl"
    own = '{"step": 7, "time": 1.0, "a": 2.0}\n'
    foreign = [
        "a comment of mine\n",
        '{"time": 1.0, "step": 7}\n',
        '{"step": 7, "mine": 1}\n',
        '{"step": "7", "time": 1.0}\n',
        '{"step": 7.0, "time": 1.0}\n',
        "[" * 100_000 + "\n",
    ]
    path.write_text("".join(own + line for line in foreign) + "no line break")
    trainer = make_trainer([MetricsFile(clock=clock)], workdir=tmp_path)
    trainer.restore(5, [{}])
    trainer.begin(9)
    trainer.log(6, {"a": 1.0})
    trainer.end()
    new = '{"step": 6, "time": 1000.0, "a": 1.0}\n'
    assert path.read_text() == "".join([*foreign, "no line break\n", new])


@pytest.mark.parametrize("cut", [1, 8, 9, 20])
def test_an_own_line_that_was_cut_off_is_removed(make_trainer, tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    line = '{"step": 5, "time": 1.0, "a": 2.0}\n'
    path.write_text(line + line[:cut])
    trainer = make_trainer([MetricsFile()], workdir=tmp_path)
    trainer.restore(5, [{}])
    trainer.begin(9)
    assert path.read_text() == line


def test_a_link_is_refused_before_the_first_step(make_trainer, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    trainer = make_trainer([MetricsFile()], workdir=tmp_path)
    with pytest.raises(OSError, match="metrics.jsonl is a link"):
        trainer.begin(1)
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="metrics.jsonl must be a file, but it is a FIFO"):
        trainer.begin(1)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "windows"),
    [
        (b"", [0]),
        (b"torn", [0]),
        (b"1234\n", [0]),
        (b"1234\n" * 5 + b"torn", [20, 10, 0]),
        (b"a line of 24 bytes.....\n1\n", [0]),
        (b"a line of 24 bytes.....\n1234567\n", [24, 0]),
    ],
)
def test_windows_begin_where_lines_do(tmp_path, monkeypatch, content, windows):
    """Windows of 10 bytes."""
    monkeypatch.setattr("tfloss.hooks.metrics_file.WINDOW", 10)
    monkeypatch.setattr("tfloss.hooks.metrics_file._BLOCK", 3)
    (tmp_path / "log").write_bytes(content)
    with (tmp_path / "log").open("rb") as file:
        assert list(line_windows(file)) == windows
