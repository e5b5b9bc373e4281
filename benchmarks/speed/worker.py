"""One contender in its own process, controlled by commands on standard input.

python benchmarks/speed/worker.py mlp tfloss
start | first | warm SECONDS RATE | run STEPS | end   # it answers each with a line of JSON
"""

import json
import os
import resource
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def main() -> None:
    """Runs the commands of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # hides what the contender prints

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")

    began = time.perf_counter()
    import keras
    from contenders import CONTENDERS
    from workloads import WORKLOADS

    workload, name = sys.argv[1:]
    keras.utils.set_random_seed(0)
    one = CONTENDERS[name](WORKLOADS[workload])
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
