"""A trainer that trains nothing: it counts steps and calls hooks as the real one promises."""

import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.distribute.agreement import Agreement
from tfloss.hooks import Hook, RunInfo
from tfloss.trainer.stopwatch import Stopwatch


@dataclasses.dataclass
class FakeCheckpoints:
    """Steps to the states of all hooks when they were saved."""

    saved: dict[int, list[dict]] = dataclasses.field(default_factory=dict)

    def steps(self) -> list[int]:
        return sorted(self.saved)

    def valid_steps(self) -> list[int]:
        return self.steps()

    def delete(self, step: int) -> None:
        del self.saved[step]


@dataclasses.dataclass
class FakeTrainer:
    """Runs hooks without a model. `results[step]` is what an evaluation at that step gives."""

    hooks: Sequence[Hook] = ()
    workdir: Path | None = None
    model: Any = dataclasses.field(default_factory=keras.Sequential)
    step: int = 0
    batch_size: int | None = 32
    error: BaseException | None = None
    results: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    on_step: Callable[[int], None] = lambda step: None
    checkpoints: FakeCheckpoints | None = dataclasses.field(default_factory=FakeCheckpoints)
    stopped: str | None = None
    agreement: Agreement = dataclasses.field(
        default_factory=lambda: Agreement(tf.distribute.get_strategy())
    )
    logged: list[tuple[int, dict]] = dataclasses.field(default_factory=list)
    stopwatch: Stopwatch = dataclasses.field(default_factory=lambda: Stopwatch(lambda: 0.0))
    window: bool = False
    writer: Any = None
    strategy: Any = dataclasses.field(default_factory=tf.distribute.get_strategy)
    train_step: Any = dataclasses.field(
        default_factory=lambda: types.SimpleNamespace(
            optimizers={}, settings=dict, groups={}, weighted_losses={}
        )
    )
    saves: list[int] = dataclasses.field(default_factory=list)
    logger: ChiefLogger = dataclasses.field(default_factory=lambda: ChiefLogger(chief=True))

    def log(self, step, scalars, summaries=()) -> None:
        self.logged.append((step, dict(scalars)))
        for hook in self.hooks:
            hook.on_log(step, scalars, summaries)

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def evaluate(self, dataset, metrics, losses=False, ema=False) -> dict[str, float]:
        results = self.results[self.step]
        return {k: v for k, v in results.items() if losses or not k.startswith("losses/")}

    def save_checkpoint(self) -> Path:
        states = json.loads(json.dumps([hook.state for hook in self.hooks]))
        self.saves.append(self.step)
        self.checkpoints.saved[self.step] = states
        return Path(f"step_{self.step:08d}")

    def begin(self, steps: int) -> None:
        self.run = RunInfo(self.step, steps, self.batch_size, None)
        self.error = self.stopped = None
        for hook in self.hooks:
            hook.trainer = self
            if hook.every is not None:
                hook.every.start(self.run)
            hook.before_train()

    def train(self, steps: int) -> None:
        """Every step one call; an exception of `on_step` is kept as `error`, not raised."""
        self.begin(steps)
        try:
            while self.step < steps and self.stopped is None:
                self.on_step(self.step + 1)
                self.step += 1
                for hook in self.hooks:
                    if hook.every is not None and hook.every.due(self.step):
                        hook.after_step(self.step)
        except BaseException as error:
            self.error = error
        self.end()

    def end(self) -> None:
        for hook in self.hooks:
            hook.after_train()

    def restore(self, step: int, states: list[dict]) -> None:
        self.step = step
        for hook, state in zip(self.hooks, states, strict=True):
            hook.state = state


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_trainer() -> type[FakeTrainer]:
    return FakeTrainer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
