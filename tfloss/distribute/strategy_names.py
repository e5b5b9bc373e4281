"""The names of strategies: what `make_strategy` and the flag `--strategy` take.

Host code, without TensorFlow.
"""

STRATEGY_NAMES = ("auto", "one", "mirrored", "multi_worker", "tpu")
