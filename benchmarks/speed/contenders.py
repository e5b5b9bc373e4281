"""The contenders: tfloss, `keras.fit`, Orbit, and hand-written loops in each mode of the engine.

Each contender has `start()`, its shortest call; `first()`, which trains `loop` steps and returns
their mean loss; `warm()`, which brings it to full speed; and `run(steps)`, which trains further.
`train(steps, record)` is a whole run from its first step, and `save(path)` its final checkpoint.
"""

import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from record import Record
from workloads import Adder, Owner, Workload


class Tfloss:
    """`Trainer` with defaults and a workdir: it logs every 100 steps and saves a checkpoint."""

    def __init__(self, work: Workload, **options: Any):
        import tfloss

        self.workdir = Path(tempfile.mkdtemp())
        model = Owner(work.make(), work.losses)
        self.data, self.loop = work.data(), work.loop
        self.shortest = work.loop if options.get("jit") == "loop" else 1  # one step is not a loop
        self.trainer = tfloss.Trainer(model, work.optimizer(), workdir=self.workdir, **options)

    def first(self) -> float:
        """Trains `loop` steps and returns their mean loss."""
        from tfloss.hooks import Hook

        class Means(Hook):
            logged: dict = {}

            def on_log(self, step, scalars, summaries):
                self.logged[step] = scalars.get("losses/total")

        hook = Means()
        self.trainer.train(self.data, self.loop, hooks=[hook])
        return hook.logged[self.loop]

    def start(self) -> None:
        """Makes the shortest call."""
        self.run(self.shortest)

    def warm(self, seconds: float, rate: float) -> None:
        """Trains as at the start of a run of five minutes, until the mode is chosen."""
        from tfloss.hooks import Every, Hook

        class Chosen(Hook):
            every = Every(seconds=0.1)

            def after_step(self, step):
                self.trainer.stop("warm")

        class Late(Chosen):
            every = Every(seconds=seconds)

            def after_step(self, step):
                if self.trainer.mode is not None:  # decided
                    super().after_step(step)

        self.trainer.train(self.data, self.trainer.step + int(300 * rate), hooks=[Late()])

    def run(self, steps: int) -> None:
        """Trains `steps` more steps."""
        self.trainer.train(self.data, self.trainer.step + steps)

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step. The trainer saves the final checkpoint."""
        from tfloss.hooks import Every, Hook

        class Points(Hook):
            every = Every(seconds=0.02)

            def after_step(self, step):
                if record.add(step, steady=self.trainer.mode is not None):
                    self.trainer.stop("enough")

        self.trainer.train(self.data, steps, hooks=[Points()])

    def save(self, path: Path) -> None:
        """Does nothing: the checkpoint is there."""

    def note(self) -> str:
        """Returns what the table should show, such as the chosen mode."""
        chosen = self.trainer.mode
        shutil.rmtree(self.workdir, ignore_errors=True)
        return str(chosen)


class Plain:
    """A contender that is warm after some steps."""

    loop: int
    saved: dict[str, Any]

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step."""
        for done in range(self.loop, steps + 1, self.loop):
            self.run(self.loop)
            record.stop_if_enough(done)

    def save(self, path: Path) -> None:
        """Saves weights and optimizer."""
        tf.train.Checkpoint(**self.saved).write(str(path / "checkpoint"))

    def warm(self, seconds: float, rate: float) -> None:
        """Trains for some seconds."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.run(self.loop)

    def run(self, steps: int) -> Any:
        """Trains `steps` more steps."""
        raise NotImplementedError

    def note(self) -> str:
        """Returns what the table should show, such as the chosen mode."""
        return ""


class Fit(Plain):
    """`keras.fit`."""

    def __init__(self, work: Workload, unrolled: int = 1, **options: Any):
        self.data, self.loop = work.data(), work.loop
        self.model = work.make()
        if work.compiled is None:
            self.model = Adder(self.model, work.losses)
            self.data = self.data.map(lambda batch: (batch,))
        else:
            options |= work.compiled
            self.data = self.data.map(work.pair)
        autotuner = tf.data.Options()
        autotuner.autotune.enabled = False
        self.data = self.data.with_options(autotuner)
        options = {"jit_compile": False, **options}
        optimizer = work.optimizer()
        self.model.compile(optimizer, **options)
        self.model.unrolled_steps_per_execution = unrolled
        self.saved = {"model": self.model, "optimizer": optimizer}

    def first(self) -> float:
        """Trains `loop` steps and returns their mean loss."""
        return self.run(self.loop).history["loss"][0]

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step."""

        class Points(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                record.stop_if_enough(batch + 1)

        self.model.fit(self.data, steps_per_epoch=steps, verbose=0, callbacks=[Points()])

    def run(self, steps: int) -> Any:
        """Trains `steps` more steps."""
        return self.model.fit(self.data, steps_per_epoch=steps, epochs=1, verbose=0)


def training_step(net: Any, optimizer: Any, work: Workload) -> Any:
    """Makes a hand-written training step."""

    def step(batch: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = sum(tf.nest.flatten(work.losses(net, batch)))
        variables = [v.value for v in net.trainable_variables]
        optimizer.apply(tape.gradient(loss, variables), net.trainable_variables)
        return loss

    return step


class Orbit(Plain):
    """`orbit.Controller`, with `loop` steps per loop."""

    def __init__(self, work: Workload):
        import orbit

        self.loop = work.loop
        net, optimizer = work.make(), work.optimizer()
        _build(net, optimizer, work)
        step = training_step(net, optimizer, work)

        class Trainer(orbit.StandardTrainer):
            def __init__(self, data):
                super().__init__(data)
                self.loss = keras.metrics.Mean()
                self.step = tf.Variable(0, dtype=tf.int64)
                self.record: Record | None = None

            def train_loop_begin(self):
                self.loss.reset_state()

            def train_step(self, iterator):
                self.loss.update_state(step(next(iterator)))
                self.step.assign_add(1)

            def train_loop_end(self):
                if self.record is not None:
                    self.record.stop_if_enough(int(self.step))
                return {"loss": float(self.loss.result())}

        self.saved = {"model": net, "optimizer": optimizer}
        self.trainer = Trainer(work.data())
        self.controller = orbit.Controller(
            trainer=self.trainer, global_step=self.trainer.step, steps_per_loop=self.loop
        )

    def first(self) -> float:
        """Trains `loop` steps and returns their mean loss."""
        self.run(self.loop)
        return float(self.trainer.loss.result())

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step."""
        self.trainer.record = record
        self.run(steps)

    def run(self, steps: int) -> None:
        """Trains `steps` more steps."""
        self.controller.train(int(self.trainer.step) + steps)


class Hand(Plain):
    """A hand-written loop.

    Args:
      work: The workload.
      mode: "call", one step per call; "range", many steps in a `tf.range`; "steps", such a loop of
        steps that XLA compiles; "whole", many steps over a stacked block as one XLA program.
    """

    def __init__(self, work: Workload, mode: str):
        net, optimizer = work.make(), work.optimizer()
        _build(net, optimizer, work)
        step = training_step(net, optimizer, work)
        data = work.data()
        many_steps = self.loop = work.loop
        self.saved = {"model": net, "optimizer": optimizer}
        self.per_call = 1 if mode == "call" else many_steps
        if mode == "steps":
            step = tf.function(step, jit_compile=True, autograph=False)
        if mode == "whole":
            options = tf.data.Options()
            options.autotune.enabled = False
            data = data.batch(many_steps, drop_remainder=True).prefetch(1).with_options(options)

            @tf.function(jit_compile=True)
            def many(block):
                total = 0.0
                for i in tf.range(many_steps):
                    total += step(tf.nest.map_structure(functools.partial(_at, i), block))
                return total / many_steps

            self.call = lambda iterator: many(next(iterator))
        elif mode == "call":
            one = tf.function(step, autograph=False)
            self.call = lambda iterator: one(next(iterator))
        else:

            @tf.function
            def loop(iterator):
                total = 0.0
                for _ in tf.range(many_steps):
                    total += step(next(iterator))
                return total / many_steps

            self.call = loop
        self.iterator = iter(data)

    def first(self) -> float:
        """Trains `loop` steps and returns their mean loss."""
        calls = [self.call(self.iterator) for _ in range(self.loop // self.per_call)]
        return float(sum(calls)) / len(calls)

    def start(self) -> None:
        """Makes the shortest call."""
        float(self.call(self.iterator))

    def run(self, steps: int) -> None:
        """Trains `steps` more steps."""
        calls = [self.call(self.iterator) for _ in range(steps // self.per_call)]
        float(calls[-1])  # waits


def _at(index: tf.Tensor, stacked: tf.Tensor) -> tf.Tensor:
    return tf.gather(stacked, index)


def _build(net: Any, optimizer: Any, work: Workload) -> None:
    """Makes all variables, without using the model's random states."""
    if not net.built:
        spec = work.data().element_spec
        tf.function(
            lambda batch: sum(tf.nest.flatten(work.losses(net, batch)))
        ).get_concrete_function(spec)
    optimizer.build(net.trainable_variables)


CONTENDERS = {
    "tfloss": Tfloss,
    "tfloss, graph": lambda work: Tfloss(work, jit=False),
    "tfloss, XLA loop": lambda work: Tfloss(work, jit="loop"),
    "fit": Fit,
    "fit, jit": lambda work: Fit(work, jit_compile=True),
    "fit, many steps/call": lambda work: Fit(work, steps_per_execution=work.loop),
    "fit, many steps/call, jit": lambda work: Fit(
        work, steps_per_execution=work.loop, jit_compile=True
    ),
    "fit, many steps/call, unrolled": lambda work: Fit(
        work, steps_per_execution=work.loop, unrolled=5
    ),
    "Orbit": Orbit,
    "hand, one step/call": lambda work: Hand(work, "call"),
    "hand, loop": lambda work: Hand(work, "range"),
    "hand, loop of XLA steps": lambda work: Hand(work, "steps"),
    "hand, XLA loop": lambda work: Hand(work, "whole"),
}
