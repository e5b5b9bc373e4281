"""Measures steps/s of all contenders on the workloads, and writes runs/speed.json.

python benchmarks/speed/measure.py                      # all
python benchmarks/speed/measure.py mlp cnn --rounds=3

Each contender is one process, which has compiled before it is measured. The measurements are
interleaved, so that noise of the machine affects all contenders equally, and ratios are taken round
by round. A contender that is far behind the best of its kind is measured once only.
"""

import argparse
import functools
import json
import math
import os
import select
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
RESULT = HERE.parents[1] / "runs" / "speed.json"
NAMES = ("mlp", "small", "cnn", "transformer", "tasks", "detector")
TUNED = ("fit, jit", "fit, many steps/call", "fit, many steps/call, jit")
HAND = ("hand, loop", "hand, one step/call", "hand, loop of XLA steps", "hand, XLA loop")
CONTENDERS = (*HAND, "fit", *TUNED, "Orbit", "tfloss")
# Start time and memory are compared with the hand-written loop in the same mode.
STARTED = (("hand, loop", "tfloss, graph"), ("hand, XLA loop", "tfloss, XLA loop"))
PATIENCE = 120  # seconds until a contender must have started
SECONDS = 3.75  # of each measurement, at least; a run ends with a checkpoint
BEHIND = 0.85  # of the best rate of the same kind; slower contenders are measured once
WARM = 0.5  # seconds of warming up


@functools.cache
def with_bytecode() -> dict[str, str]:
    """Compiles tfloss to bytecode, as its installation does, and returns the environment for it."""
    where = HERE.parents[1] / "tfloss"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "compileall", "-q", str(where)]
    subprocess.run(command, check=True, env=environment)
    return environment


class Process:
    """A contender in its own process. After an error all answers are empty.

    Args:
      workload: The name of the workload.
      name: The name of the contender.
      python: The interpreter to run it with.
    """

    def __init__(self, workload: str, name: str, python: str = sys.executable):
        command = [python, str(HERE / "worker.py"), workload, name]
        self.name, self.error = name, ""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env=with_bytecode(),
        )

    def ask(self, line: str) -> dict:
        """Sends a command and returns its answer."""
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Sends a command."""
        if self.error:
            return
        try:
            self.process.stdin.write(line + "\n")
        except BrokenPipeError:
            self.error = "the process ended"

    def answer(self, patience: float = PATIENCE) -> dict:
        """Waits for the answer to the last command, `patience` seconds at most."""
        if self.error:
            return {}
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.error = f"nothing after {patience} s"
            self.process.kill()
            return {}
        text = self.process.stdout.readline()
        found = json.loads(text) if text else {"error": "the process ended"}
        self.error = found.get("error", "")
        return {} if self.error else found

    def end(self) -> dict:
        """Ends the process and returns its last answer."""
        found = self.ask("end")
        self.process.kill()  # it has cleaned up; a normal exit takes TensorFlow a second
        self.process.wait(30)
        return found


def started(workload: str, rounds: int, compiled: bool) -> dict:
    """Measures start time and memory: `{contender: {"start": [seconds], "megabytes"}}`."""
    pairs = STARTED if compiled else STARTED[:1]
    found: dict = {name: {"start": []} for pair in pairs for name in pair}
    for round in range(rounds):
        for name in found if round == 0 else STARTED[0]:
            one = Process(workload, name)
            if seconds := one.ask("start").get("seconds"):
                found[name]["start"].append(seconds)
            if round == 0:
                one.ask(f"run {3 * _loop(workload)}")
                found[name]["megabytes"] = one.end().get("megabytes")
            else:
                one.end()
    for name, values in found.items():
        print(f"  {name}: {values}", flush=True)
    return found


def measured(workload: str, names: tuple[str, ...], rounds: int) -> dict:
    """Measures speed: `{contender: {"loss", "rates": [steps/s], "note", "error"}}`."""
    loop = _loop(workload)
    processes = {name: Process(workload, name) for name in names}
    losses = {}
    for i in range(
        0, len(names), 2
    ):  # two at a time, since much of the compilation is single-threaded
        both = [processes[name] for name in names[i : i + 2]]
        for one in both:
            one.tell("first")
        losses |= {one.name: one.answer().get("loss") for one in both}
    found, steps = {}, {}
    hand = 10.0
    for name, one in processes.items():
        one.ask(f"warm {WARM} {hand:.3f}")
        rate = loop / one.ask(f"run {loop}").get("seconds", 1.0)
        if (some := _rounded_up(rate * SECONDS / 4, loop)) > loop:
            rate = some / one.ask(f"run {some}").get("seconds", 1.0)
        steps[name] = _rounded_up(rate * SECONDS, loop)
        if name == "hand, loop":
            hand = rate
        found[name] = {"loss": losses[name], "first": 0.0 if one.error else rate, "rates": []}
        print(f"  {name}: {one.error or f'{rate:.1f} steps/s'}", flush=True)
    out = _far_behind(found)
    for _ in range(rounds):
        for name, one in processes.items():
            if name not in out:
                took = one.ask(f"run {steps[name]}").get("seconds")
                if took:
                    found[name]["rates"].append(steps[name] / took)
    for name, one in processes.items():
        found[name] |= {"note": one.end().get("note", ""), "error": one.error}
    return found


def _far_behind(found: dict) -> set[str]:
    """The contenders that can't be the best of their kind. They keep their first rate."""
    out = set()
    for group in (TUNED, HAND):
        first = {name: found[name]["first"] for name in group if name in found}
        best = max(first.values(), default=0.0)
        out |= {name for name, rate in first.items() if rate < BEHIND * best}
    for name in out:
        found[name]["rates"] = [found[name]["first"]] if found[name]["first"] else []
    return out


def _loop(workload: str) -> int:
    from workloads import WORKLOADS

    return WORKLOADS[workload].loop


def _rounded_up(steps: float, loop: int) -> int:
    return max(1, math.ceil(steps / loop)) * loop


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=[])
    parser.add_argument("--only", action="append", help="a contender, besides 'hand, loop'")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    names = CONTENDERS if not flags.only else ("hand, loop", *flags.only)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for workload in flags.workloads or NAMES:
        print(workload, flush=True)
        result[workload] = measured(workload, names, flags.rounds)
        if not flags.only:
            compiled = result[workload]["tfloss"]["note"] == "loop"
            result[workload]["started"] = started(workload, 3, compiled)
        for name, one in result[workload].items():
            if "rates" in one:
                rate = statistics.median(one["rates"]) if one["rates"] else float("nan")
                print(f"  {name}: {rate:.1f} steps/s, loss {one['loss']} {one['note']}", flush=True)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
