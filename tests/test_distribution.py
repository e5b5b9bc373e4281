"""A strategy from a name."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from tfloss.distribution import STRATEGIES, check_strategy, is_chief, make_strategy

CLUSTER = {
    "cluster": {"worker": ["localhost:1", "localhost:2"]},
    "task": {"type": "worker", "index": 0},
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)


@pytest.mark.parametrize(
    ("name", "replicas", "expected"),
    [
        ("one", None, 1),
        ("one", 1, 1),
        ("auto", None, 1),
        ("auto", 1, 1),
        ("auto", 3, 3),
        ("mirrored", 1, 1),
        ("mirrored", 2, 2),
        ("mirrored", None, 8),  # as many as conftest.py configured
    ],
)
def test_the_number_of_replicas(name, replicas, expected):
    strategy = make_strategy(name, replicas)

    assert strategy.num_replicas_in_sync == expected
    assert isinstance(strategy, tf.distribute.MirroredStrategy) == (
        name == "mirrored" or replicas == 3
    )
    check_strategy(strategy)
    assert is_chief(strategy)


def test_mirrored_runs_on_as_many_devices():
    strategy = make_strategy("mirrored", 2)

    def where():
        return tf.distribute.get_replica_context().replica_id_in_sync_group

    values = strategy.experimental_local_results(strategy.run(where))
    assert [int(value) for value in values] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mirored",), r"Unknown strategy 'mirored'; choose one of auto, one, mirrored"),
        (("mirrored", 0), r"replicas must be at least 1, got 0"),
        (("one", 2), r"Strategy 'one' has one replica, but replicas=2. Use 'mirrored'"),
        (("tpu", 8), r"replicas=8 can't be chosen with strategy 'tpu'"),
        (("multi_worker", 2), r"replicas=2 can't be chosen with strategy 'multi_worker'"),
        (("mirrored", 9), r"has started already, with 8 logical CPU devices.*9 replicas.*first"),
        (("multi_worker",), r"set the variable TF_CONFIG on each of them"),
        (("tpu",), r"found no TPU 'local'; set the variable TPU_NAME"),
    ],
)
def test_what_can_not_be_is_said(arguments, message):
    tf.constant(0)  # TensorFlow has started

    with pytest.raises(ValueError, match=message):
        make_strategy(*arguments)


def test_auto_follows_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    tf.constant(0)

    with pytest.raises(ValueError, match="too late to connect to other workers"):
        make_strategy("auto")


@pytest.mark.parametrize("text", ["{", "[1]", '{"cluster": 3}'])
def test_a_broken_tf_config_is_shown(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)

    with pytest.raises(ValueError, match="TF_CONFIG can't be read"):
        make_strategy("auto")


def test_central_storage_is_refused():
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"], "CPU:0")

    with pytest.raises(ValueError, match="does not train under CentralStorageStrategy"):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "refused",
    [
        tf.distribute.ParameterServerStrategy,
        tf.compat.v1.distribute.experimental.ParameterServerStrategy,
    ],
)
def test_parameter_servers_are_refused(refused):
    strategy = refused.__new__(refused)  # a real one waits for its servers

    with pytest.raises(ValueError, match="does not train under ParameterServerStrategy"):
        check_strategy(strategy)


class _Resolver:
    def __init__(self, jobs, task_type, task_id):
        self.task_type, self.task_id = task_type, task_id
        self._jobs = jobs

    def cluster_spec(self):
        return tf.train.ClusterSpec(self._jobs)


@pytest.mark.parametrize(
    ("jobs", "task", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), True),
        ({}, (None, None), True),
    ],
)
def test_one_worker_is_the_chief(monkeypatch, jobs, task, chief):
    kind = tf.distribute.MultiWorkerMirroredStrategy
    strategy = kind.__new__(kind)  # a real one waits for its peers
    monkeypatch.setattr(kind, "cluster_resolver", _Resolver(jobs, *task))

    assert is_chief(strategy) is chief


def test_the_flags_offer_the_same_names():
    from tfloss.app import flags

    assert flags.STRATEGIES == STRATEGIES


@pytest.mark.slow
def test_logical_devices_are_made_in_a_fresh_process():
    code = (
        "from tfloss.distribution import make_strategy\n"
        "print(make_strategy('mirrored', 3).num_replicas_in_sync)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
