import json

import pytest

from tfloss.hooks import Evaluate, MetricsFile


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_log_on_disk_at_once(make_trainer, tmp_path, clock):
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


def test_what_is_not_finite_is_a_string_that_float_reads(make_trainer, tmp_path):
    trainer = make_trainer([MetricsFile(tmp_path / "sub/m.jsonl")])
    trainer.begin(1)
    trainer.log(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    (record,) = lines(tmp_path / "sub/m.jsonl")
    assert (record["a"], record["b"], record["c"]) == ("nan", "inf", "-inf")
    assert float(record["c"]) == -float("inf")


def test_a_resumed_run_appends_also_after_a_torn_line(make_trainer, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        trainer = make_trainer([MetricsFile()], workdir=tmp_path)
        trainer.begin(2)
        trainer.log(step, {"a": 0.0})
        trainer.end()
    assert [record["step"] for record in lines(path)] == [1, 2]
    path.write_text(path.read_text() + '{"step": 3, "ti')
    trainer.begin(3)
    trainer.log(3, {"a": 0.0})
    trainer.end()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()[3:]] == [3]


def test_logs_of_later_hooks_at_the_end_are_written(make_trainer, tmp_path):
    hooks = [MetricsFile(), Evaluate("data", {})]
    trainer = make_trainer(hooks, workdir=tmp_path, results={2: {"accuracy": 0.5}})
    trainer.train(2)
    assert [record["val/accuracy"] for record in lines(tmp_path / "metrics.jsonl")] == [0.5]
    assert hooks[0]._file is None


def test_its_own_fields_can_not_be_logged_over(make_trainer, tmp_path):
    trainer = make_trainer([MetricsFile()], workdir=tmp_path)
    trainer.begin(1)
    with pytest.raises(ValueError, match="named 'time'.*'my_time'"):
        trainer.log(1, {"time": 1.0})


def test_it_needs_a_place(make_trainer):
    with pytest.raises(ValueError, match=r"give the Trainer a workdir, or MetricsFile\(path\)"):
        make_trainer([MetricsFile()]).begin(1)
