"""Where the time of a step goes, in a hand-written loop and in tfloss, in the same mode.

python benchmarks/speed/parts.py cnn                  # a tf.range loop
python benchmarks/speed/parts.py transformer --loop --seconds=30   # many as one XLA program

Both train in one process, in turns, since the speed of one program differs by up to a fifth between
processes. "program" is the time in TensorFlow's program. "batches" is the time that a program waits
for its batches (a hand-written tf.range loop waits inside the program). "around" is the rest of
`Trainer.train`: logs and hooks. The checkpoint is listed separately. "CPU" is the CPU time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

PAIRS = (("hand, loop", "tfloss, graph"), ("hand, XLA loop", "tfloss, XLA loop"))


class TimedIterator:
    """An iterator that adds up the time of its `next`."""

    def __init__(self, iterator: Iterator, spent: dict[str, float]):
        self._iterator, self._spent = iterator, spent

    def __next__(self) -> Any:
        """Returns the next element."""
        began = time.perf_counter()
        batch = next(self._iterator)
        self._spent["batches"] += time.perf_counter() - began
        return batch


def timed_engine(spent: dict[str, float]) -> None:
    """Makes tfloss add up the time of its programs and of waiting for batches."""
    from tfloss.engine.engine import Engine

    run = Engine.run

    def timed_run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        block = run(*args, **options)
        block.rows()  # waits
        waited = float(block.waited)
        spent["batches"] += waited
        spent["program"] += time.perf_counter() - began - waited
        return block

    Engine.run = timed_run


def timed(one: Any, steps: int) -> float:
    """Returns the seconds of a run."""
    began = time.perf_counter()
    one.run(steps)
    return time.perf_counter() - began


class Measured:
    """A contender that is measured in turns with another one.

    Args:
      workload: Its name.
      name: Name of the contender.
      spent: Receives the seconds that tfloss spends.
    """

    def __init__(self, workload: str, name: str, spent: dict[str, float]):
        import keras
        from contenders import CONTENDERS
        from workloads import WORKLOADS

        keras.utils.set_random_seed(0)
        self._one: Any = CONTENDERS[name](WORKLOADS[workload])
        self._trainer = getattr(self._one, "trainer", None)
        self._spent = spent
        if name == "hand, XLA loop":
            self._one.iterator = TimedIterator(self._one.iterator, spent)
        self._steps = self._one.loop

    def warm(self, aim: float) -> None:
        """Finds the number of steps that take about `aim` seconds."""
        self._one.first()
        seconds = 0.0
        while seconds < aim / 2:  # it also does what is done once in a process
            seconds = timed(self._one, self._steps)
            if seconds < aim / 2:
                loops = aim / seconds * self._steps / self._one.loop
                self._steps = max(2, round(loops)) * self._one.loop

    def parts(self) -> dict[str, float]:
        """Makes a run, and returns `{part: milliseconds per step}`."""
        self._spent.clear()
        began = time.process_time()
        seconds = timed(self._one, self._steps)
        spent = dict(self._spent)
        if self._trainer is not None:
            spent["checkpoint"] = self._trainer.stopwatch.seconds()["checkpoint"]
            spent["around"] = seconds - sum(spent.values())
        else:
            spent["program"] = seconds - spent.get("batches", 0.0)
        spent["all"], spent["CPU"] = seconds, time.process_time() - began
        return {part: 1000 * value / self._steps for part, value in spent.items()}


def in_turns(
    workload: str, names: Sequence[str], aim: float, rounds: int
) -> list[list[dict[str, float]]]:
    """Measures the contenders in turns in this process."""
    spent: dict[str, float] = defaultdict(float)
    timed_engine(spent)
    ones = [Measured(workload, name, spent) for name in names]
    for one in ones:
        one.warm(aim)
    return [[one.parts() for one in ones] for _ in range(rounds)]


def in_one_process(
    workload: str, names: Sequence[str], aim: float, rounds: int
) -> list[list[dict[str, float]]]:
    """Measures the contenders in turns in a process of their own."""
    ran = subprocess.run(
        [sys.executable, __file__, workload, f"--here={json.dumps([names, aim, rounds])}"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    """Measures both contenders of a mode and prints the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--loop", action="store_true", help="many steps as one XLA program")
    parser.add_argument("--rounds", type=int, default=5, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.here:
        print(json.dumps(in_turns(flags.workload, *json.loads(flags.here))))
        return
    names = PAIRS[flags.loop]
    rounds: list[list[dict[str, float]]] = []
    for _ in range(flags.processes):
        rounds += in_one_process(flags.workload, names, flags.seconds, flags.rounds)
        print(".", end="", flush=True)
    print(f"\n{flags.workload}, ms per step: median (minimum to maximum) of {len(rounds)} runs")
    for name, runs in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name}:")
        for part in ("program", "batches", "around", "checkpoint", "all", "CPU"):
            print(f"  {part:10} {_spread([run.get(part, 0.0) for run in runs], 4)}")
    for part in ("all", "CPU"):
        ratios = [hand[part] / mine[part] for hand, mine in rounds]
        print(f"by hand / tfloss, {part}: {_spread(ratios, 3)}")


def _spread(values: Sequence[float], digits: int) -> str:
    least, middle, most = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main()
