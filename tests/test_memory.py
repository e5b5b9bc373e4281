"""What is kept from one step to the next: nothing."""

import gc
from pathlib import Path

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook


def resident(collect: bool = True) -> float:
    """The memory of this process in MiB, by default after a garbage collection."""
    if collect:
        gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Watch(Hook):
    every = Every(steps=10_000)

    def __init__(self):
        self.megabytes = []

    def after_step(self, step):
        self.megabytes.append(resident())


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True, "loop"])
@pytest.mark.parametrize("log_every_step", [False, True])
def test_a_hundred_thousand_steps_take_no_more_memory_than_twenty_thousand(
    jit, log_every_step, tmp_path
):
    watch = Watch()
    trainer = tfloss.Trainer(
        Line(),
        keras.optimizers.Adam(0.0),
        jit=jit,
        log_every_step=log_every_step,
        workdir=tmp_path,
        hooks=[watch],
    )
    trainer.train(rows([1.0, 2.0, 3.0, 4.0], 4), 100_000)
    # A leak of 100 bytes a step would be 8 MB.
    assert max(watch.megabytes[5:]) - watch.megabytes[1] < 5.0
