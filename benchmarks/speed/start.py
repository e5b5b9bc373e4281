"""Where the time goes from the start of a process to its first step.

python benchmarks/speed/start.py                                # 5 minutes on two cores
python benchmarks/speed/start.py mlp --only="tfloss, graph" --only="hand, loop"

It prints CPU seconds, which a busy machine hardly changes, and the wall time of all. A script of
tfloss begins with `tfloss.quiet()`, as the guide recommends. Bytecode is used, as after an
installation. The parts:

- tensorflow: importing TensorFlow and Keras, with what Keras imports if it is installed.
- tfloss: importing tfloss.
- others: importing the benchmark, and starting Python.
- model: making the net. data: making the data set.
- prepare: all that comes before the first call of a compiled function, but tracing: making the
  trainer or the loop, variables of the optimizer, the directory, hooks, iterators.
- trace: building graphs in Python.
- first call: the first calls of compiled functions: placing, optimising or XLA, and kernels.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
from measure import with_bytecode  # noqa: E402

WORKLOADS = ("mlp", "small", "transformer", "detector")
PAIRS = (("hand, loop", "tfloss, graph"), ("hand, XLA loop", "tfloss, XLA loop"))
PARTS = ("tensorflow", "tfloss", "others", "model", "data", "prepare", "trace", "first call")


class Parts:
    """CPU seconds of each part. A part inside of another one counts for itself only."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open = ["others"]
        self._since = 0.0  # `time.process_time` begins with the process

    def _next(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Generator[None]:
        """Counts the time inside."""
        self._next()
        self._open.append(name)
        try:
            yield
        finally:
            self._next()
            self._open.pop()

    def counted(self, name: str, function: Callable) -> Callable:
        """Wraps a function, all of whose time counts for a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def close(self) -> dict[str, float]:
        """Returns the seconds of the parts."""
        self._next()
        return self.seconds


def child(workload: str, name: str) -> None:
    """Trains the first step in this process, and prints where the time went."""
    from record import process_age

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    parts = Parts()
    if name.startswith("tfloss"):
        with parts.part("tfloss"):
            import tfloss
            import tfloss.app.quiet
        with parts.part("tensorflow"):
            tfloss.quiet()
    with parts.part("tensorflow"):
        import keras
    if name.startswith("tfloss"):
        with parts.part("tfloss"):
            importlib.import_module("tfloss.trainer.trainer")
    from contenders import CONTENDERS, Tfloss
    from tensorflow.python.eager import context
    from tensorflow.python.framework import func_graph
    from workloads import WORKLOADS

    graph, call = func_graph.func_graph_from_py_func, context.Context.call_function
    func_graph.func_graph_from_py_func = parts.counted("trace", graph)
    context.Context.call_function = parts.counted("first call", call)
    keras.utils.set_random_seed(0)
    work = WORKLOADS[workload]
    work = dataclasses.replace(
        work, make=parts.counted("model", work.make), data=parts.counted("data", work.data)
    )
    found: dict[str, Any] = {}

    def first_step() -> None:
        found.update(parts=dict(parts.close()), wall=process_age())

    with parts.part("prepare"):
        one = CONTENDERS[name](work)
        if isinstance(one, Tfloss):
            first_step_of(one, first_step)
        else:
            one.start()
            first_step()
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    os._exit(0)


def first_step_of(one: Any, done: Callable[[], None]) -> None:
    """Begins a run of 10,000 steps, and ends it after the first call."""
    from tfloss.hooks import Every, Hook

    class First(Hook):
        every = Every(seconds=1e-9)

        def after_step(self, step: int) -> None:
            done()
            self.every = None
            raise SystemExit

    with contextlib.suppress(SystemExit):
        one.trainer.train(one.data, 10_000, hooks=[First()])


def measured(workload: str, name: str, rounds: int) -> dict | None:
    """Returns the median of each part, in CPU seconds, and of the wall time."""
    environment = with_bytecode() | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    results = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, __file__, workload, f"--child={name}"],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode or not done.stdout:
            print(f"  {name}: {(done.stderr.splitlines() or ['no answer'])[-1]}", flush=True)
            return None
        results.append(json.loads(done.stdout))
    found = {p: statistics.median(r["parts"][p] for r in results) for p in PARTS}
    found["CPU"] = statistics.median(sum(r["parts"].values()) for r in results)
    found["wall"] = statistics.median(r["wall"] for r in results)
    return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*")
    parser.add_argument("--only", action="append", help="a contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags.workloads[0], flags.child)
    print("| | | " + " | ".join((*PARTS, "CPU", "wall")) + " |")
    print("| --- | --- |" + " --: |" * (len(PARTS) + 2))
    for workload in flags.workloads or WORKLOADS:
        for pair in PAIRS:
            names = [name for name in pair if name in (flags.only or pair)]
            rows = {name: measured(workload, name, flags.rounds) for name in names}
            for name, row in rows.items():
                if row is not None:
                    cells = " | ".join(f"{value:.2f}" for value in row.values())
                    print(f"| {workload} | {name} | {cells} |", flush=True)
            hand, mine = (rows.get(name) for name in pair)
            if hand and mine:
                ratios = [mine[key] / hand[key] for key in ("CPU", "wall")]
                print(f"  tfloss / by hand: CPU {ratios[0]:.2f}, wall {ratios[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
