"""Where the time of a step goes, in a hand-written loop and in tfloss, in the same mode.

python benchmarks/speed/parts.py cnn                  # a tf.range loop
python benchmarks/speed/parts.py transformer --loop --seconds=30   # many as one XLA program

Each measurement is the second long run of a new process; hand-written loop and tfloss alternate.
"program" is the time in TensorFlow's program. "batches" is the time that a program waits for its
batches (a hand-written tf.range loop waits inside the program). "around" is the rest of
`Trainer.train`: logs and hooks. The checkpoint is listed separately.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
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


def one_run(workload: str, name: str, aim: float) -> dict[str, float]:
    """Measures a run of about `aim` seconds in this process: `{part: milliseconds per step}`."""
    import keras
    from contenders import CONTENDERS
    from workloads import WORKLOADS

    keras.utils.set_random_seed(0)
    one = CONTENDERS[name](WORKLOADS[workload])
    spent: dict[str, float] = defaultdict(float)
    if name.startswith("tfloss"):
        timed_engine(spent)
    elif name == "hand, XLA loop":
        one.iterator = TimedIterator(one.iterator, spent)
    one.first()
    steps, seconds = one.loop, 0.0
    while seconds < aim / 2:  # it also does what is done once in a process
        seconds = timed(one, steps)
        if seconds < aim / 2:
            steps = max(2, round(aim / seconds * steps / one.loop)) * one.loop
    spent.clear()
    seconds = timed(one, steps)
    if name.startswith("tfloss"):
        spent["checkpoint"] = one.trainer.stopwatch.seconds()["checkpoint"]
        spent["around"] = seconds - sum(spent.values())
        one.note()
    else:
        spent["program"] = seconds - spent["batches"]
    spent["all"] = seconds
    return {part: 1000 * value / steps for part, value in spent.items()}


def main() -> None:
    """Measures both contenders of a mode and prints the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--loop", action="store_true", help="many steps as one XLA program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run")
    parser.add_argument("--one", help="measure this contender here")
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(one_run(flags.workload, flags.one, flags.seconds)))
        return
    pair = PAIRS[flags.loop]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pair}
    for _ in range(flags.rounds):
        for name in pair:
            command = [sys.executable, __file__, flags.workload, f"--one={name}"]
            command.append(f"--seconds={flags.seconds}")
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(ran.stdout.splitlines()[-1]))
            print(".", end="", flush=True)
    print(
        f"\n{flags.workload}, ms per step: median (minimum to maximum) of {flags.rounds} processes"
    )
    for name, runs in found.items():
        print(f"{name}:")
        for part in ("program", "batches", "around", "checkpoint", "all"):
            values = [run.get(part, 0.0) for run in runs]
            least, middle, most = min(values), statistics.median(values), max(values)
            print(f"  {part:10} {middle:.4f} ({least:.4f} to {most:.4f})")


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main()
