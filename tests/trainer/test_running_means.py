import json

import numpy as np
import pytest

from tfloss.engine.engine import StepLogs
from tfloss.trainer.log_window import LogWindow
from tfloss.trainer.running_means import RunningMeans


def _block(first, rows, names=("a",)):
    return StepLogs(first, names, np.array(rows, np.float32).reshape(len(rows), len(names)))


def test_the_mean_since_the_restart():
    means = RunningMeans(list)
    means.add(_block(0, [1, 2, 3]))
    assert means.values() == {"a": 2.0}
    means.restart(3)
    means.add(_block(2, [100, 5]))  # step 3 was counted before
    assert means.values() == {"a": 5.0}
    means.add(_block(4, [7, 9], ("a",)))
    means.add(_block(6, [[3, 1]], ("a", "due")))
    assert means.values() == {"a": 6.0, "due": 1.0}


def test_the_sums_do_not_depend_on_how_steps_were_split():
    values = np.random.default_rng(0).normal(size=200).astype(np.float32) * 1e6
    one, many = RunningMeans(list), RunningMeans(list)
    one.add(_block(0, values))
    for first in range(0, 200, 7):
        many.add(_block(first, values[first : first + 7]))
        saved = json.loads(json.dumps(many.state()))
        many = RunningMeans(list)
        many.restore(saved, min(first + 7, 200))
    assert one.values() == many.values()


def test_a_window_gives_every_step_once_logged_or_not():
    window = LogWindow(2, log_every_step=False)
    means = window.running_means()
    means.restart(0)
    window.add(_block(0, [1, 2, 6]))
    assert means.values() == {"a": 3.0}
    list(window.logs(None, complete=True))
    window.add(_block(3, [11]))
    list(window.logs(None))
    assert means.values() == {"a": 5.0}
    assert not window


def test_sums_of_another_step_are_not_restored():
    means = RunningMeans(list)
    means.restore({"step": 4, "sums": {"a": [8.0, 4]}}, 5)
    assert means.values() == {}
    means.restore({"step": 4, "sums": {"a": [8.0, 4]}}, 4)
    assert means.values() == {"a": pytest.approx(2.0)}
