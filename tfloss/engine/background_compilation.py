"""Compiles the loop in another thread while training goes on as a graph. Host code.

    compiler = BackgroundCompiler(train_step)
    while not compiler.ready(engine, feed): ...       # train as a graph
    engine.run(...)                                   # compiles nothing, but for rare shapes

The loop is made in the calling thread, of a copy of the step that runs as a graph
(`tfloss.engine.step_traces`): a model may keep what it likes while it is traced, and hooks may call
it. XLA's own code runs beside the training, without Python's lock. It can't be
interrupted. So the thread is a daemon, and a process that ends meanwhile doesn't wait for it.
"""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.data.feed import Feed
from tfloss.engine.engine import COMPILER_ERRORS, Engine
from tfloss.engine.mode_choice import available_cores
from tfloss.step.train_step import TrainStep

# On a single core, TensorFlow's threads would leave the compiler's thread a small part of the time,
# for steps that are slow meanwhile. So training waits twice as long as its steps have taken, but so
# briefly that progress is shown each second.
_WAIT_FACTOR, _UPDATE_SECONDS = 2.0, 0.95
_RESERVED_BYTES = 512 * 2**20  # for XLA itself


class BackgroundCompiler:
    """Compiles one program at a time.

    Args:
      train_step: The step that the programs consist of.

    Attributes:
      possible: Whether it compiles anything. On a GPU it doesn't: a call on copies takes as much
        memory as a step, which may be what the training needs.
    """

    def __init__(self, train_step: TrainStep):
        self._step = train_step
        self._current: _Compilation | None = None
        self.possible = not tf.config.list_physical_devices("GPU")

    @property
    def used(self) -> bool:
        """Whether it has begun to compile a program."""
        return self._current is not None

    @property
    def seconds(self) -> float | None:
        """Seconds that the latest program took to compile; None if there is none."""
        return None if self._current is None else self._current.seconds

    def ready(self, engine: Engine, feed: Feed) -> bool:
        """Returns whether the loop of an engine may run. The first call traces and begins.

        Args:
          engine: An engine of the mode "loop".
          feed: The data.

        Returns:
          False while the loop is compiled. True if it is compiled, or can only be by running it.

        Raises:
          Exception: The trace or the compiler failed.
        """
        current = self._current
        if current is None or current.engine is not engine:
            if current is not None and not current.done:  # of a step that was traced again since
                return False
            compile_now = self._traced(engine, feed)
            if compile_now is None:
                self._current = None
                return True
            self._current = current = _Compilation(engine, compile_now)
            if available_cores() > 1:  # training would wait for it later
                feed.input.source("loop").prepare(feed.reader.likely_batch_size())
        done = current.done
        if done and current.error is not None:
            raise current.error
        return done

    def leave_core(self, seconds: float) -> None:
        """Waits after steps that were run meanwhile, if the compiler has no other core.

        Args:
          seconds: Seconds that the steps took.
        """
        if self._current is not None and available_cores() == 1:
            self._current.wait(max(0.0, min(_WAIT_FACTOR * seconds, _UPDATE_SECONDS - seconds)))

    def _traced(self, engine: Engine, feed: Feed) -> Callable[[], None] | None:
        if not self.possible:
            return None
        stacker = feed.input.source("loop")
        size = stacker.size.expected(stacker.element_spec, feed.reader.likely_batch_size())
        if size is None or not _fits(self._step.state_bytes(), block := size.block()):
            return None
        return engine.compiler(block)


class _Compilation:
    """A program that another thread compiles.

    Attributes:
      engine: The engine whose program it is.
      error: What the compiler raised, with advice, once it is done; or None.
      seconds: Seconds that it took, once it is done.
    """

    def __init__(self, engine: Engine, compile_now: Callable[[], None]):
        self.engine = engine
        self.error: Exception | None = None
        self.seconds = 0.0
        self._compile = compile_now
        self._thread = threading.Thread(target=self._run, name="tfloss-compiler", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, successfully or not."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until it has ended, at most for some seconds."""
        self._thread.join(seconds)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._compile()
            self.seconds = time.monotonic() - began
        except COMPILER_ERRORS as error:
            self.error = self.engine.with_advice(error)
        except Exception as error:  # noqa: BLE001 - such as a lack of memory
            self.error = error


def _fits(state: int, block: Any) -> bool:
    """Returns whether there is memory for what compiling takes beside the training.

    That is a copy of the state, two more that the program makes of it, and a block.

    Args:
      state: Bytes of the state.
      block: Nest of tensors.
    """
    available = available_bytes()
    size = sum(one.dtype.size * int(tf.size(one)) for one in tf.nest.flatten(block))
    return available is None or 3 * state + size + _RESERVED_BYTES <= available


def available_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    """Returns how much memory of the host is free or can be freed, or None if that isn't known.

    Args:
      path: The file in which Linux tells.
    """
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
