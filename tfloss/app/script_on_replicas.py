"""Runs a Python script inside of the scope of a strategy of logical CPU devices. Host code.

`tfloss inspect --replicas=N -- python train.py` runs `python -m tfloss.app.script_on_replicas
train.py`. So a script that knows nothing of strategies runs on N replicas, and `make_strategy`
returns the same strategy to one that does.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from tfloss.common.command_variables import REPLICAS_VARIABLE


def main(argv: Sequence[str]) -> None:
    """Runs a script, or a module after `-m`.

    Args:
      argv: The script and its arguments.
    """
    from tfloss.app.quiet import import_tensorflow

    import_tensorflow()
    from tfloss.distribute.strategy import make_strategy

    count = int(os.environ.pop(REPLICAS_VARIABLE))
    strategy = make_strategy("mirrored", count)
    os.environ[REPLICAS_VARIABLE] = str(count)  # from here on, it is the only strategy
    with strategy.scope():
        if argv[0] == "-m":
            sys.argv = list(argv[1:])
            sys.path.insert(0, os.getcwd())
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(argv)
            sys.path.insert(0, str(Path(argv[0]).resolve().parent))
            runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
