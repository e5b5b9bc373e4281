"""A strategy from a name."""

import json
import os
import signal
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.common.command_variables import INSPECT_VARIABLE, RANGE_VARIABLE, REPLAY_VARIABLE
from tfloss.distribute.launch import free_ports
from tfloss.distribute.strategy import check_strategy, is_chief, make_strategy
from tfloss.distribute.strategy_names import STRATEGY_NAMES
from tfloss.errors import ClusterError

CLUSTER = {
    "cluster": {"worker": ["localhost:1", "localhost:2"]},
    "task": {"type": "worker", "index": 0},
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TFLOSS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
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
        (("mirrored", 9), r"has already started, with 8 logical CPU devices.*9 replicas.*first"),
        (("multi_worker",), r"set the variable TF_CONFIG on each of them"),
        (("tpu",), r"found no TPU 'local'; set the variable TPU_NAME"),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    tf.constant(0)  # TensorFlow has started

    with pytest.raises(ValueError, match=message):
        make_strategy(*arguments)


def test_auto_follows_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    tf.constant(0)

    with pytest.raises(ValueError, match="already started, so it can.t connect to other workers"):
        make_strategy("auto")


@pytest.mark.parametrize("variable", [REPLAY_VARIABLE, INSPECT_VARIABLE, RANGE_VARIABLE])
def test_a_command_that_starts_one_process_waits_for_no_worker(monkeypatch, variable):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    monkeypatch.setenv(variable, "{}")
    tf.constant(0)  # to connect would be an error now

    assert make_strategy("multi_worker").num_replicas_in_sync == 1


def test_auto_needs_several_workers(monkeypatch):
    one = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(one))

    assert make_strategy("auto").num_replicas_in_sync == 1


def test_an_invalid_tf_config_is_shown(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")

    with pytest.raises(ClusterError, match="TF_CONFIG is invalid"):
        make_strategy("auto")


def test_a_slurm_step_of_one_task_is_no_cluster(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_PROCID": "0",
    }.items():
        monkeypatch.setenv(name, value)

    assert make_strategy("auto").num_replicas_in_sync == 1
    with pytest.raises(ClusterError, match=r"one worker: SLURM_STEP_NUM_TASKS is 1.*--ntasks=2"):
        make_strategy("multi_worker")


def test_the_time_to_connect_must_be_seconds(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    monkeypatch.setenv("TFLOSS_CONNECT_TIMEOUT", "5m")

    with pytest.raises(
        ClusterError, match="TFLOSS_CONNECT_TIMEOUT must be a number of seconds, got '5m'"
    ):
        make_strategy("multi_worker")


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

    assert flags.STRATEGY_NAMES == STRATEGY_NAMES


@pytest.mark.slow
def test_logical_devices_are_made_in_a_fresh_process():
    code = (
        "from tfloss.distribute.strategy import make_strategy\n"
        "print(make_strategy('mirrored', 3).num_replicas_in_sync)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def in_a_cluster(code, rank, addresses, **variables):
    """Starts a worker with the variables that Kubernetes and its user set."""
    environ = {"TFLOSS_WORKERS": ",".join(addresses), "JOB_COMPLETION_INDEX": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SUM = """
import tensorflow as tf
from tfloss.distribute.strategy import is_chief, make_strategy

strategy = make_strategy("auto")

def add():
    context = tf.distribute.get_replica_context()
    rank = tf.cast(context.replica_id_in_sync_group, tf.float32)
    return context.all_reduce("sum", 1.0 + 10.0 * rank)

total = float(tf.function(lambda: strategy.run(add))())
print(strategy.num_replicas_in_sync, total, is_chief(strategy))
"""


@pytest.mark.slow
def test_two_workers_add_a_number():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = [in_a_cluster(SUM, rank, addresses) for rank in (0, 1)]

    out = [worker.communicate(timeout=120) for worker in workers]

    assert [worker.returncode for worker in workers] == [0, 0], out
    assert [printed for printed, _ in out] == ["2 12.0 True\n", "2 12.0 False\n"]


@pytest.mark.slow
def test_an_absent_worker_ends_a_training_script(tmp_path):
    (tmp_path / "recipe.py").write_text(
        "import ml_collections\ndef get_config(): return ml_collections.ConfigDict()\n"
    )
    code = (
        "from tfloss import app\n"
        f"argv = ['train.py', '--config={tmp_path}/recipe.py', '--workdir={tmp_path}/run']\n"
        "app.run(lambda run: None, argv=argv)\n"
    )
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    worker = in_a_cluster(code, 0, addresses, TFLOSS_CONNECT_TIMEOUT="3")

    _, error = worker.communicate(timeout=60)

    assert worker.returncode == 2
    assert f"worker 1 ({addresses[1]}: connection refused)" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_wait_for_a_worker_that_dies_while_tensorflow_starts_ends():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    stays = (
        "from tfloss.distribute import strategy\n"
        "strategy.make_strategy('multi_worker', connect_timeout=60.0)\n"
    )
    leaves = (
        "import os\n"
        "from tfloss.distribute import cluster, rendezvous\n"
        "found = cluster.find_cluster()\n"
        "rendezvous.wait_for_workers(found.addresses, found.rank, 60.0)\n"
        "import time; time.sleep(2); os._exit(9)\n"
    )
    leaver = in_a_cluster(leaves, 1, addresses)
    stayer = in_a_cluster(stays, 0, addresses)

    _, error = stayer.communicate(timeout=60)

    assert (leaver.wait(), stayer.returncode) == (9, -signal.SIGKILL)
    lost = f"tfloss: lost worker 1 ({addresses[1]}) while TensorFlow connected the workers"
    assert lost in error


def _means(strategy):
    """The loss of one step on 0, 1, 2, 3, before and after it."""
    with strategy.scope():
        model, optimizer = Line(), keras.optimizers.SGD(0.1)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, log_every=1)
    trainer.train(rows([0.0, 1.0, 2.0, 3.0], 4), 1)
    return float(model.w.numpy())


@pytest.mark.promise(38)
def test_strategies_of_several_sizes_train_in_one_process():
    for replicas in (2, 4, 2):
        assert _means(make_strategy("mirrored", replicas)) == pytest.approx(1 - 0.1 * 1.5)


COLLECTIVES = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

def total(size):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    context = tf.distribute.get_replica_context
    run = lambda: context().all_reduce("sum", tf.ones([size]))
    return tf.function(lambda: strategy.run(run))()

total(3)
try:
    total(4)
except tf.errors.OpError as error:
    from tfloss import _upstream
    print(_upstream.caused_by_collectives_of_another_strategy(error))
"""


@pytest.mark.slow
@pytest.mark.promise(38)
@pytest.mark.upstream
def test_a_second_strategy_can_not_use_collectives_of_other_shapes():
    command = [sys.executable, "-c", COLLECTIVES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
