"""One contender in its own process, controlled by commands on standard input.

python benchmarks/speed/worker.py mlp tfloss
start | first | warm SECONDS RATE | run STEPS | end   # it answers each with a line of JSON
whole STEPS REACH SECONDS PATIENCE FAST               # a line for each point of `record.Record`
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def contender(workload: str, name: str) -> Any:
    """Makes a contender. Those on JAX don't import TensorFlow."""
    if name.startswith("Keras on JAX"):
        from jax_contenders import JAX_CONTENDERS

        return JAX_CONTENDERS[name](workload)
    if name.startswith("tfloss"):
        import tfloss

        tfloss.quiet()  # as the guide recommends; it makes the import shorter
    import keras
    from contenders import CONTENDERS
    from workloads import WORKLOADS

    keras.utils.set_random_seed(0)
    return CONTENDERS[name](WORKLOADS[workload])


def whole(
    one: Any,
    answer: Any,
    steps: float,
    reach: float,
    seconds: float,
    patience: float,
    fast: float,
) -> None:
    """Makes a whole run, its final checkpoint included."""
    from record import Enough, Record, process_age

    record = Record(
        lambda step, age: answer(step=step, seconds=age), int(reach), seconds, patience, fast
    )
    try:
        one.train(int(steps), record)
    except Enough:
        pass
    with tempfile.TemporaryDirectory() as path:
        one.save(Path(path))
        ended = process_age()
    step, age = record.last or (0, ended)
    answer(
        last=step,
        at=age,
        ended=ended,
        rate=record.rate,
        steady=record.steady,
        pause=record.pause,
    )


def main() -> None:
    """Runs the commands of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # hides what the contender prints

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")

    began = time.perf_counter()
    one = contender(*sys.argv[1:])
    for line in sys.stdin:
        command, *arguments = line.split()
        try:
            if command == "first":
                loss = one.first()
                answer(loss=loss)
            elif command == "start":
                one.start()
                answer(seconds=time.perf_counter() - began)
            elif command == "warm":
                one.warm(*map(float, arguments))
                answer(ok=True)
            elif command == "whole":
                whole(one, answer, *map(float, arguments))
            elif command == "run":
                since = time.perf_counter()
                one.run(int(arguments[0]))
                answer(seconds=time.perf_counter() - since)
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                answer(megabytes=peak, note=one.note() if hasattr(one, "note") else "")
                return
        except Exception as error:  # noqa: BLE001 - the table shows what can't be run
            answer(error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
            return


if __name__ == "__main__":
    main()
