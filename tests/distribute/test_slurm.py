"""Lists of hosts as Slurm writes them. tests/distribute/test_cluster.py has whole environments."""

import pytest

from tfloss.distribute.slurm import expand_hosts, slurm_workers
from tfloss.errors import ClusterError


def test_a_list_of_hosts_is_expanded_in_its_order():
    assert expand_hosts("gpu[01-03,7],login,rack[9-11]-ib") == (
        ["gpu01", "gpu02", "gpu03", "gpu7", "login", "rack9-ib", "rack10-ib", "rack11-ib"]
    )


def test_a_range_keeps_its_leading_zeros():
    assert expand_hosts("n[008-011]") == ["n008", "n009", "n010", "n011"]


@pytest.mark.parametrize("text", ["", "n[2", "n[2-]", "n[1-2-3]", "a,,b", "n]1["])
def test_an_invalid_list_of_hosts_is_an_error(text):
    with pytest.raises(ClusterError, match="SLURM_STEP_NODELIST can't be parsed"):
        expand_hosts(text)


def test_a_process_outside_of_srun_has_no_workers():
    assert slurm_workers({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}) is None
