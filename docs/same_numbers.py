"""Writes the table of docs/distribution.md: differences of the weights from those of one replica.

python docs/same_numbers.py          # about five minutes on two cores
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tests.equivalence.kinds import KINDS, difference, train  # noqa: E402

BEGIN = "<!-- Written by docs/same_numbers.py -->"
END = "<!-- End of what is written by docs/same_numbers.py -->"
COUNTS = (2, 4, 8)


def on_workers() -> list[dict[str, np.ndarray]]:
    """Trains each kind in two processes with two replicas each.

    Returns:
      For each kind, `{variable: weights}`.
    """
    with tempfile.TemporaryDirectory() as directory:
        worker = [sys.executable, "-m", "tests.equivalence.worker", directory]
        launch = [sys.executable, "-m", "tfloss.cli", "launch", "--workers", "2", "--", *worker]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(launch, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
        files = [Path(directory) / f"{index}.npz" for index in range(len(KINDS))]
        return [dict(np.load(file)) for file in files]


def mirrored(count: int) -> tf.distribute.Strategy:
    """Returns a strategy over `count` logical CPU devices."""
    devices = [f"CPU:{index}" for index in range(count)]
    # Collective ops refuse groups of different sizes in one process.
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())


def table() -> str:
    """Trains everything, and returns the table in Markdown."""
    workers = on_workers()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * max(COUNTS),
    )
    lines = [
        f"| | {' | '.join(f'{count} replicas' for count in COUNTS)} | 2 workers × 2 replicas |",
        f"| --- |{' --: |' * (len(COUNTS) + 1)}",
    ]
    for (name, kind), distributed in zip(KINDS.items(), workers, strict=True):
        one = train(kind, tf.distribute.get_strategy())
        found = [difference(one, train(kind, mirrored(count))) for count in COUNTS]
        found.append(difference(one, distributed))
        lines.append(f"| {name} | {' | '.join(f'{value:.0e}' for value in found)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Replaces the table in docs/distribution.md."""
    path = ROOT / "docs" / "distribution.md"
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
