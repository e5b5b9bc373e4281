"""Each example passes a dry run, which trains, evaluates and exports once and leaves nothing."""

import pytest

from tests.examples.harness import run
from tests.examples.test_fashion import stand_in

SMALL = {
    "digits": ["--config.model.width=4"],
    "penguins": [],
    "fashion": ["--config.net.width=4", "--config.batch_size=16"],
    "moco": ["--config.model.width=8", "--config.batch_size=8", "--config.model.queue=64"],
    "gan": ["--config.model.width=8", "--config.batch_size=8"],
    "vqvae": ["--config.width=8", "--config.batch_size=8"],
    "detector": ["--config.model.width=16"],
}


@pytest.mark.parametrize(
    "name", [k if k == "digits" else pytest.param(k, marks=pytest.mark.slow) for k in SMALL]
)
def test_each_example_passes_a_dry_run(name, tmp_path):
    if name in ("fashion", "moco", "gan", "vqvae"):
        stand_in(tmp_path / "data")
    flags = [f"--config.data_dir={tmp_path / 'data'}", *SMALL[name], "--dry_run"]
    printed = run(f"{name}/train.py", name, tmp_path / "run", *flags)
    assert "One training step was made\n  " in printed
    assert "One batch of 'val' was evaluated\n  val/" in printed
    assert "The model was exported, and deleted again: " in printed
    left = {one.name for one in (tmp_path / "run").iterdir()}
    assert left <= ({"scorer.keras", ".lock"} if name == "gan" else set())  # of the script itself
