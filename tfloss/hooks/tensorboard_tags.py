"""Which run of TensorBoard a logged value belongs to, and its tag there. Host code.

    runs = TensorBoardRuns(["val", "test"])
    runs.place("losses/total")        # ("train", "losses/total")
    runs.place("val/losses/total")    # ("val", "losses/total"): both curves share a chart
    runs.place("val/accuracy")        # ("val", "metrics/accuracy")
    runs.place("steps_per_second")    # ("train", "training/steps_per_second")

TensorBoard sorts its groups of charts by name, and opens the first two: the losses, then metrics.
"""

import re
from collections.abc import Iterable

TRAIN = "train"
# The first part of the names of what a trainer logs beside losses and summaries.
BOOKKEEPING = (
    "examples_per_second",
    "gradient_norm",
    "input",
    "learning_rate",
    "loss_scale",
    "skipped",
    "steps_per_second",
    "time",
)
# Directories of a workdir that hold something else.
_TAKEN = ("checkpoints", "eval", "export", "nonfinite", "stacks", TRAIN)
_DIRECTORY = re.compile(r"[\w.-]*\w[\w.-]*")


class TensorBoardRuns:
    """Places logged values. Host.

    Args:
      evaluations: The names of the hooks `Evaluate`, which are prefixes of what they log. Each is a
        run, unless its name can't be a directory of its own in a workdir.
    """

    def __init__(self, evaluations: Iterable[str] = ()):
        self.names = sorted(
            name for name in evaluations if _DIRECTORY.fullmatch(name) and name not in _TAKEN
        )

    def place(self, name: str) -> tuple[str, str]:
        """Returns the run and the tag of a scalar.

        Args:
          name: Name as logged.
        """
        run, tag = self.split(name)
        if tag.partition("/")[0] in BOOKKEEPING and run == TRAIN:
            return run, f"training/{tag}"
        return run, tag if "/" in tag else f"metrics/{tag}"

    def split(self, name: str) -> tuple[str, str]:
        """Returns the run and the tag of a summary that is no scalar: its name in the run."""
        prefix, slash, rest = name.partition("/")
        return (prefix, rest) if slash and rest and prefix in self.names else (TRAIN, name)


def may_be_run(name: str) -> bool:
    """Whether an evaluation of an earlier call may have written to a directory of this name."""
    return name not in _TAKEN
