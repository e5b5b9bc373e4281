"""What a step costs on 1, 2 and 4 replicas, in calls of one step and in calls of 100 steps.

    python benchmarks/replicas.py                # the MLP of benchmarks/speed
    python benchmarks/replicas.py small cnn      # its other workloads

The replicas are logical CPU devices, and the global batch is the same for all of them. So what
grows with their number is the work of the host: Python, the executor of the graph, and the
reduction. CPU time is that of all threads of the process. It is the fastest of several rounds,
since other processes can only make a call slower.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfloss

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from workloads import WORKLOADS, Owner

REPLICAS, CALLS, STEPS, ROUNDS = (1, 2, 4), (1, 100), 100, 8


def trainer_of(name: str, strategy, steps_per_call: int):
    """Makes a trainer of a workload, and a function that trains for 100 steps more."""
    work = WORKLOADS[name]
    with strategy.scope():
        model, optimizer = Owner(work.make(), work.losses), work.optimizer()
    trainer = tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        jit=False,
        steps_per_call=steps_per_call,
        log_every=STEPS,
        default_hooks=False,
    )
    data = work.data().take(64).cache().repeat()
    return lambda: trainer.train(data, trainer.step + STEPS)


def measure(name: str) -> None:
    """Prints the table of one workload."""
    print(f"\n{name}: ms for each step, and ms of CPU time for each step and replica\n")
    print("| replicas | calls of 1 step | calls of 100 | ratio | CPU, calls of 1 | CPU, of 100 |")
    print("| --: | --: | --: | --: | --: | --: |")
    runs = {}
    for replicas in REPLICAS:
        strategy = tfloss.make_strategy("mirrored" if replicas > 1 else "one", replicas)
        for call in CALLS:
            runs[replicas, call] = trainer_of(name, strategy, call)
            runs[replicas, call]()
    wall = dict.fromkeys(runs, float("inf"))
    cpu = dict(wall)
    for _ in range(ROUNDS):
        for key, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            wall[key] = min(wall[key], (time.perf_counter() - began) * 1e3 / STEPS)
            cpu[key] = min(cpu[key], (time.process_time() - used) * 1e3 / STEPS)
    for replicas in REPLICAS:
        one, many = ((wall[replicas, call], cpu[replicas, call] / replicas) for call in CALLS)
        print(
            f"| {replicas} | {one[0]:.2f} | {many[0]:.2f} | {one[0] / many[0]:.2f} | "
            f"{one[1]:.2f} | {many[1]:.2f} |",
            flush=True,
        )


def main() -> None:
    """Runs the benchmark and prints its tables."""
    tfloss.make_strategy("mirrored", max(REPLICAS))  # creates the logical devices
    for name in sys.argv[1:] or ["mlp"]:
        measure(name)


if __name__ == "__main__":
    main()
