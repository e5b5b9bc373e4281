"""How `tfloss replay` and `tfloss lr-range` tell the script that they start what to do."""

VARIABLE = "TFLOSS_REPLAY"  # environment variable: the directory of the step to replay
RANGE_VARIABLE = "TFLOSS_LR_RANGE"  # the arguments of the range test, as JSON
RESULT_FILE = "replay.txt"  # beside the batch; it also shows that the step was replayed
