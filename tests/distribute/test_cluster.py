"""Who the workers are, from faked environments."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfloss.distribute.cluster import Cluster, find_cluster, no_cluster_advice
from tfloss.errors import ClusterError

TWO = ["a:2222", "b:2222"]


def tf_config(cluster=None, task=None, **more):
    cluster = {"worker": TWO} if cluster is None else cluster
    task = {"type": "worker", "index": 0} if task is None else task
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, **more})}


def slurm(**changed):
    """Task 2 of three on n2 and n10, as srun sets it."""
    names = {
        "SLURM_JOB_ID": "1000",
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NODELIST": "n[2,10]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_PROCID": "2",
        "SLURMD_NODENAME": "n10",
        "SLURM_LOCALID": "0",
    } | changed
    return {name: value for name, value in names.items() if value is not None}


def test_nothing_is_named():
    assert find_cluster({}) is None
    assert find_cluster({"TF_CONFIG": " "}) is None
    assert find_cluster({"TF_CONFIG": '{"environment": "cloud"}'}) is None
    assert find_cluster({"JOB_COMPLETION_INDEX": "0"}) is None  # independent tasks
    assert find_cluster({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}) is None  # not under srun


def test_tf_config():
    found = find_cluster(tf_config(task={"type": "worker", "index": "1"}, environment="cloud"))

    assert found == Cluster({"worker": ("a:2222", "b:2222")}, "worker", 1, "TF_CONFIG")
    assert found.rank == 1


def test_the_chief_comes_first():
    jobs = {"worker": TWO, "chief": ["c:2222"]}
    found = find_cluster(tf_config(jobs, {"type": "worker", "index": 0}))
    chief = find_cluster(tf_config(jobs, {"type": "chief", "index": 0}))

    assert found.addresses == chief.addresses == ("c:2222", "a:2222", "b:2222")
    assert (found.rank, chief.rank) == (1, 0)


def test_workers_by_name():
    found = find_cluster({"TFLOSS_WORKERS": "a:2222, b:2222", "JOB_COMPLETION_INDEX": "1"})

    assert (found.addresses, found.rank) == (("a:2222", "b:2222"), 1)


def test_slurm():
    found = find_cluster(slurm())

    # 15000 + 64 * 1000 + 16 * 1, in a range of 16000 less the two ports of a host
    assert found.addresses == ("n2:15024", "n2:15025", "n10:15024")
    assert (found.task, found.rank) == ("worker", 2)
    assert find_cluster(slurm(SLURM_STEP_ID="2")).addresses[0] == "n2:15040"


def test_tf_config_counts_before_the_others():
    assert find_cluster(slurm() | tf_config()).source == "TF_CONFIG"


@pytest.mark.parametrize("environ", [slurm(), tf_config({"chief": ["c:1"], "worker": TWO})])
def test_tensorflow_reads_the_same(environ, monkeypatch):
    import tensorflow as tf

    found = find_cluster(environ)
    monkeypatch.setenv("TF_CONFIG", found.tf_config())
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()

    assert (resolver.task_type, resolver.task_id) == (found.task, found.index)
    read = resolver.cluster_spec().as_dict()
    assert tuple(read.get("chief", []) + read["worker"]) == found.addresses


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TF_CONFIG": "{"}, r"TF_CONFIG is invalid: it is not JSON .*Its value: \{$"),
        ({"TF_CONFIG": "[1]"}, r'TF_CONFIG is invalid: it must be \{"cluster"'),
        ({"TF_CONFIG": '{"cluster": 3}'}, r'it must be \{"cluster"'),
        ({"TF_CONFIG": '{"task": {"type": "worker", "index": 0}}'}, 'a "task" but no "cluster"'),
        (tf_config({"worker": "a:1"}), '"worker" must be a list of "host:port"'),
        (tf_config({"worker": {"0": "a:1"}}), '"worker" must be a list of "host:port"'),
        (tf_config({"worker": TWO, "ps": ["c:1"]}), "without parameter servers"),
        (tf_config({"worker": TWO, "master": ["c:1"]}), 'TensorFlow 2 calls it "chief"'),
        (tf_config({"worker": TWO, "cheif": ["c:1"]}), '"cheif": the types of tasks are "chief'),
        (tf_config({"worker": TWO, "chief": ["c:1", "d:1"]}), 'only one "chief", but it has 2'),
        (tf_config(task=[]), "does not say which worker this is"),
        (tf_config(task={"type": "worker"}), "does not say which worker this is"),
        (
            tf_config(task={"type": "worker", "index": "x"}),
            "index 'x' of the task is not an integer",
        ),
        (
            tf_config(task={"type": "worker", "index": 1.5}),
            "index 1.5 of the task is not an integer",
        ),
        (tf_config(task={"type": "chief", "index": 0}), r"'chief', which is not in the cluster"),
        (
            tf_config(task={"type": "evaluator", "index": 0}),
            "'evaluator'; .*so it needs no evaluator",
        ),
        (tf_config(task={"type": "worker", "index": 2}), "is worker 2, but .* 2 workers.*from 0"),
        (tf_config(task={"type": "worker", "index": -1}), "this process is worker -1"),
        (tf_config({"worker": ["a:1", "b"]}), "address 'b' has no port"),
        (tf_config({"worker": ["a:1", "grpc://b:1"]}), "'grpc://b:1' is not host:port"),
        (tf_config({"worker": ["a:1", "::1:2222"]}), r"'::1:2222'.*\[address\]:port"),
        (tf_config({"worker": ["a:1", "b:70000"]}), "port of address 'b:70000' is not between"),
        (tf_config({"worker": ["a:1", "b:1", "a:1"]}), "address 'a:1' is listed 2 times"),
        (tf_config({"worker": ["a:1", "b:1"], "chief": ["a:1"]}), "'a:1' is listed 2 times"),
        (
            {"TFLOSS_WORKERS": "a:1,b:1"},
            "is set, but JOB_COMPLETION_INDEX is not.*of the 2 workers",
        ),
        (
            {"TFLOSS_WORKERS": "a:1,b:1", "JOB_COMPLETION_INDEX": "2"},
            "JOB_COMPLETION_INDEX is '2', but TFLOSS_WORKERS has 2 workers",
        ),
        ({"TFLOSS_WORKERS": "a:1,,b:1"}, "TFLOSS_WORKERS is invalid: address '' has no port"),
        (slurm(SLURM_STEP_NODELIST="n[2"), r"SLURM_STEP_NODELIST can't be parsed: n\[2"),
        (slurm(SLURM_STEP_NODELIST="n[2-]"), "SLURM_STEP_NODELIST can't be parsed"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="two"), "SLURM_STEP_TASKS_PER_NODE can't be parsed: two"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="3"), "NODELIST has 2 hosts.*tasks of 1 hosts"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="2(x2)"), "NUM_TASKS is 3, but .* has 4"),
        (slurm(SLURM_PROCID="3"), "SLURM_PROCID is 3, but the step has 3 tasks"),
        (slurm(SLURM_PROCID="x"), "SLURM_PROCID is 'x', which is not a number"),
        (slurm(SLURM_PROCID=None), "is set, but SLURM_PROCID is not"),
        (slurm(SLURM_STEP_TASKS_PER_NODE=None), "is set, but SLURM_STEP_TASKS_PER_NODE is not"),
        # srun --distribution=cyclic: task 1 runs on the second host
        (
            slurm(SLURM_PROCID="1"),
            "SLURMD_NODENAME is n10, but task 1 .* should have n2: .*--distribution=block",
        ),
        (slurm(SLURM_LOCALID="1"), "SLURM_LOCALID is 1, but task 2 .* should have 0: "),
    ],
)
def test_an_invalid_or_incomplete_cluster_is_refused(environ, message):
    with pytest.raises(ClusterError, match=message):
        find_cluster(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "`tfloss launch --workers 2 .*set the variable TF_CONFIG on each of them"),
        ({"SLURM_JOB_ID": "7"}, "Slurm job 7 .*Start it with srun"),
        ({"JOB_COMPLETION_INDEX": "0"}, "Set it to the addresses of all pods"),
    ],
)
def test_advice_without_a_cluster(environ, message):
    assert re.search(message, no_cluster_advice(environ))


def blocks(language):
    """The code blocks of docs/distribution.md."""
    text = (Path(__file__).parents[2] / "docs" / "distribution.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_manifest_names_the_pods_that_the_job_has():
    yaml = pytest.importorskip("yaml")
    service, job, policy = yaml.safe_load_all(blocks("yaml")[0])
    pod = job["spec"]["template"]["spec"]
    environ = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}

    name, count = job["metadata"]["name"], job["spec"]["completions"]
    found = [find_cluster(environ | {"JOB_COMPLETION_INDEX": str(i)}) for i in range(count)]

    assert service["spec"]["selector"] == {"job-name": name}
    hosts = [f"{name}-{i}.{pod['subdomain']}:2222" for i in range(count)]
    assert list(found[0].addresses) == hosts and pod["subdomain"] == service["metadata"]["name"]
    assert [each.rank for each in found] == list(range(count))
    mine = {"podSelector": {"matchLabels": {"job-name": name}}}
    assert policy["spec"]["podSelector"] == mine["podSelector"]
    assert policy["spec"]["ingress"] == [{"from": [mine]}]
    assert set(environ) == {"TFLOSS_WORKERS", "TFLOSS_CLUSTER_SECRET"}


@pytest.mark.parametrize("ended", [0, 1, 75])
def test_the_batch_script_runs_as_slurm_would_run_it(ended, tmp_path):
    """An srun that starts two tasks as the real one does, and a scontrol that writes down."""
    (script,) = [block for block in blocks("bash") if "#SBATCH" in block]
    task = (
        "from tfloss.distribute.cluster import find_cluster\n"
        "found = find_cluster()\n"
        f"print(found.rank, *found.addresses); raise SystemExit({ended} * found.rank)\n"
    )
    programs = {
        "srun": "export SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_TASKS_PER_NODE='1(x2)'\n"
        "export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_ID=0 SLURM_LOCALID=0\n"
        'SLURM_PROCID=0 SLURMD_NODENAME=n1 python -c "$TASK"\n'
        'SLURM_PROCID=1 SLURMD_NODENAME=n2 python -c "$TASK"\n',
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.txt\n',
        "python": f'exec {sys.executable} "$@"\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "TASK": task}

    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True)

    assert done.returncode == ended, done.stderr
    assert done.stdout == "0 n1:15448 n2:15448\n1 n1:15448 n2:15448\n"
    requeued = tmp_path / "scontrol.txt"
    assert (requeued.read_text() if requeued.exists() else "") == "requeue 7\n" * (ended == 75)
