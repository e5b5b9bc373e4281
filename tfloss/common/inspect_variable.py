"""How `tfloss inspect` tells the script that it starts to look at the run and not to train."""

# Environment variable: JSON of an `Asked` (`tfloss.trainer.commands`).
VARIABLE = "TFLOSS_INSPECT"
# Environment variable: the number of logical CPU devices on which the script runs.
REPLICAS_VARIABLE = "TFLOSS_INSPECT_REPLICAS"
