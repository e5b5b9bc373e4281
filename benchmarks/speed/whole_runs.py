"""Whole runs: seconds from the start of the process to step N, with data and final checkpoint.

python benchmarks/speed/whole_runs.py                 # mlp and small: 20 minutes
python benchmarks/speed/whole_runs.py cnn --only=tfloss --only="hand, loop"
python benchmarks/speed/whole_runs.py mlp --cores=1   # as `taskset` does
python benchmarks/speed/whole_runs.py mlp --busy      # beside a process that takes a core
python benchmarks/speed/whole_runs.py --written       # writes the docs from the last runs
python benchmarks/speed/whole_runs.py --jax=VENV/bin/python  # with Keras on JAX, installed there

It writes runs/whole_runs.json, and the tables and the picture of docs/performance.md.

Each run is a process of its own, alone on the machine. It writes a point (step, seconds since it
began) every 0.05 s. tfloss is told the number of steps, on which its choice of a mode depends, so
it makes a run for each number. The others do the same at each step of a longer run: they make one
run, and the time to step N is that of the point at step N, and of the checkpoint at the end. The
steady rate is measured over 30 s. Runs of more steps than were made are computed from it.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from measure import Process  # noqa: E402
from whole_run_tables import STEPS, write  # noqa: E402

RESULT = HERE.parents[1] / "runs" / "whole_runs.json"
# The likely fastest ones first: a run that reaches less than half of the best rate is shorter.
CONTENDERS = (
    "hand, XLA loop",
    "hand, loop of XLA steps",
    "hand, loop",
    "Keras on JAX, lax.scan by hand",
    "Keras on JAX, fit",
    "fit, many steps/call, jit",
    "fit, many steps/call",
    "fit, many steps/call, unrolled",
    "fit",
    "Orbit",
    "tfloss",
)
SILENCE = 180.0  # seconds without a point after which a run has failed


def run(workload: str, name: str, steps: int, flags: argparse.Namespace, fast: float) -> dict:
    """Makes one run.

    Returns:
      `{"points": [[step, seconds]], "steps", "last", "at", "ended", "rate", "steady", "pause",
      "note", "error"}`: at `last` steps, after `at` seconds, training was over, and with its
      checkpoint after `ended`.
    """
    python = flags.jax if name.startswith("Keras on JAX") else sys.executable
    process = Process(workload, name, python)
    # tfloss ends by itself, but for its longest run: there the rate tells the rest.
    reach = min(STEPS[-2], flags.most) if steps == STEPS[-1] else steps
    patience = flags.patience * (1 if steps == STEPS[-1] else 3)
    process.tell(f"whole {steps} {reach} {flags.seconds} {patience} {fast}")
    found: dict = {"steps": steps, "points": []}
    while "ended" not in found and not process.error:
        answer = process.answer(SILENCE)
        if "step" in answer:
            found["points"].append([answer["step"], round(answer["seconds"], 3)])
        else:
            found |= answer
    return found | {"note": process.end().get("note", ""), "error": process.error}


def measured(workload: str, names: list[str], flags: argparse.Namespace) -> dict:
    """Measures a workload: `{contender: {steps: run}}`."""
    fast, found = 0.0, {}
    for name in names:
        targets = [n for n in STEPS if n <= flags.most] if name == "tfloss" else [STEPS[-1]]
        found[name] = {}
        for steps in targets:
            one = run(workload, name, steps, flags, 0.0 if name == "tfloss" else fast)
            found[name][str(steps)] = one
            if one["error"]:
                print(f"  {name}: {one['error']}", flush=True)
                break
            fast = max(fast, one["rate"] or 0.0) if name != "tfloss" else fast
            rate = f"{one['rate']:.1f} steps/s" if one["rate"] else "no rate"
            print(
                f"  {name}: {one['last']:,} steps in {one['ended']:.1f} s, then {rate} "
                f"over {one['steady']:.0f} s, {one['note']}",
                flush=True,
            )
    return found


def machine() -> dict:
    """Describes the machine."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def available(name: str, jax: str | None) -> bool:
    """Returns whether a contender is installed, and prints it if not."""
    if name == "Orbit":
        there = subprocess.run([sys.executable, "-c", SEEK.format("orbit")]).returncode == 0
        how = "pip install --no-deps tf-models-official tf_keras"
    elif name.startswith("Keras on JAX"):
        there = bool(jax) and subprocess.run([jax, "-c", SEEK.format("jax")]).returncode == 0
        how = "--jax=PYTHON of an environment with jax and keras"
    else:
        return True
    if not there:
        print(f"{name} is left out, since it isn't installed: {how}")
    return there


SEEK = "import importlib.util, sys; sys.exit(importlib.util.find_spec('{}') is None)"


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*")
    parser.add_argument("--only", action="append", help="a contender")
    parser.add_argument("--most", type=int, default=STEPS[-1], help="make no longer runs")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the steady rate")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds of a run, about")
    parser.add_argument("--cores", type=int, help="use so many cores only")
    parser.add_argument("--busy", action="store_true", help="beside a process that takes a core")
    parser.add_argument("--jax", default=os.environ.get("JAX_PYTHON"), help="its interpreter")
    parser.add_argument("--written", action="store_true", help="don't measure")
    flags = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not flags.written:
        if flags.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
        cores = len(os.sched_getaffinity(0))
        condition = f"{cores} core{'s' * (cores > 1)}{', one of them busy' * flags.busy}"
        names = [n for n in flags.only or CONTENDERS if available(n, flags.jax)]
        here = result.setdefault(condition, {"workloads": {}})
        here["machine"] = machine()
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if flags.busy else None
        try:
            for workload in flags.workloads or ("mlp", "small"):
                print(f"{workload}, {condition}", flush=True)
                found = here["workloads"].setdefault(workload, {})
                found |= measured(workload, names, flags)
                RESULT.parent.mkdir(exist_ok=True)
                RESULT.write_text(json.dumps(result, indent=1))
        finally:
            if busy:
                busy.kill()
    write(result)


if __name__ == "__main__":
    main()
