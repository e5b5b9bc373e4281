"""How `tfloss replay` tells the script that it starts what to replay, and gets the result."""

VARIABLE = "TFLOSS_REPLAY"  # environment variable: the directory of the step to replay
RESULT_FILE = "replay.txt"  # beside the batch; it also shows that the step was replayed
