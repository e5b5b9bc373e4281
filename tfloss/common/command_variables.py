"""How `tfloss replay`, `inspect` and `lr-range` tell the script that they start what to do.

Each name but the last is that of an environment variable.
"""

REPLAY_VARIABLE = "TFLOSS_REPLAY"  # the directory of the step to replay
RANGE_VARIABLE = "TFLOSS_LR_RANGE"  # the arguments of the range test, as JSON
INSPECT_VARIABLE = "TFLOSS_INSPECT"  # JSON of an `Asked` (`tfloss.trainer.commands`)
REPLICAS_VARIABLE = "TFLOSS_INSPECT_REPLICAS"  # on how many logical CPU devices the script runs
RESULT_FILE = "replay.txt"  # beside the batch to replay; it also shows that the step was replayed
