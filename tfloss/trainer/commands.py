"""What a command of `tfloss` has a script do in place of training. Host code.

`tfloss replay` starts a training script with an environment variable, which `Trainer.train` obeys
when the model is built.
"""

import os
from typing import Any

from tfloss import replay
from tfloss.common.replay_variable import VARIABLE


def obey_command(trainer: Any) -> None:
    """Does what the environment asks for, if it asks for something. Runs on the host.

    Args:
      trainer: The trainer of the script, whose model is built.

    Raises:
      SystemExit: Something was asked for, and is done.
    """
    if bundle := os.environ.get(VARIABLE):
        replay.replay_and_exit(trainer, bundle)
