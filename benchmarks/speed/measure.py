"""Measures steps/s of all contenders on the workloads, in turn, and writes runs/speed.json.

python benchmarks/speed/measure.py                      # all: about 25 minutes on two cores
python benchmarks/speed/measure.py mlp cnn --rounds=3

Each contender is a process, that has compiled before anything is measured. Then all of them run in
turn, so that a noisy machine treats them alike; ratios are taken round by round.
"""

import argparse
import json
import select
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "runs" / "speed.json"
NAMES = ("mlp", "small", "cnn", "transformer", "tasks", "detector")
CONTENDERS = (
    "hand, loop",
    "hand, one a call",
    "hand, loop of XLA steps",
    "hand, XLA loop",
    "fit",
    "fit, jit",
    "fit, 100 a call",
    "fit, 100 a call, jit",
    "Orbit",
    "tfloss",
)
PATIENCE = 120  # seconds for a contender to begin
SECONDS = 1.5  # of each measurement


class Process:
    """A contender; after an error it is None's worth."""

    def __init__(self, workload: str, name: str):
        command = [sys.executable, str(HERE / "worker.py"), workload, name]
        self.name, self.error = name, ""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def ask(self, line: str, patience: float = PATIENCE) -> dict:
        if self.error:
            return {}
        self.process.stdin.write(line + "\n")
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.error = f"nothing after {patience} s"
            self.process.kill()
            return {}
        text = self.process.stdout.readline()
        found = json.loads(text) if text else {"error": "the process ended"}
        self.error = found.get("error", "")
        return {} if self.error else found


def measured(workload: str, names: tuple[str, ...], rounds: int) -> dict:
    """`{contender: {"loss", "start", "steps_per_second": [...], "megabytes", "note"}}`."""
    found, processes, steps = {}, {}, {}
    hand = 10.0
    for name in names:
        one = processes[name] = Process(workload, name)
        first = one.ask("first")
        one.ask(f"warm 2 {hand:.3f}")
        guess = one.ask("run 100").get("seconds", 1.0)
        guess = one.ask(f"run {_hundreds(SECONDS / guess * 100)}").get("seconds", 1.0) / (
            _hundreds(SECONDS / guess * 100) / 100
        )
        steps[name] = _hundreds(SECONDS / guess * 100)
        if name == "hand, loop":
            hand = 100 / guess
        found[name] = {"loss": first.get("loss"), "start": first.get("seconds"), "rates": []}
        print(f"  {name}: {one.error or f'{100 / guess:.1f} steps/s'}", flush=True)
    for _ in range(rounds):
        for name, one in processes.items():
            took = one.ask(f"run {steps[name]}").get("seconds")
            if took:
                found[name]["rates"].append(steps[name] / took)
    for name, one in processes.items():
        end = one.ask("end")
        found[name] |= {"megabytes": end.get("megabytes"), "note": end.get("note", "")}
        found[name]["error"] = one.error
        one.process.stdin.close()
        one.process.wait(30)
    return found


def _hundreds(steps: float) -> int:
    return max(100, round(steps / 100) * 100)


def main() -> None:
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
        for name, one in result[workload].items():
            rate = statistics.median(one["rates"]) if one["rates"] else float("nan")
            print(f"  {name}: {rate:.1f} steps/s, loss {one['loss']} {one['note']}", flush=True)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
