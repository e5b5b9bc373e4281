import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.equivalence.kinds import KINDS, difference, train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.promise(9, 18)
@pytest.mark.filterwarnings("ignore:No loss reaches")
def test_two_workers_with_two_replicas_each_agree_with_one_process(tmp_path):
    worker = [sys.executable, "-m", "tests.equivalence.worker", str(tmp_path)]
    launch = [sys.executable, "-m", "tfloss.cli", "launch", "--workers", "2", "--", *worker]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFLOSS_CONNECT_TIMEOUT": "120"}
    subprocess.run(launch, cwd=ROOT, env=environment, check=True, timeout=500)
    for index, (name, kind) in enumerate(KINDS.items()):
        one = train(kind, tf.distribute.get_strategy())
        found = difference(one, dict(np.load(tmp_path / f"{index}.npz")))
        assert found < 1e-5 if kind.agrees else found > 1e-3, f"{name}: {found}"
