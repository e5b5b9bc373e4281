"""Which run of TensorBoard a logged value belongs to, and its tag there. Host code.

    runs = TensorBoardRuns(["val", "test"])
    runs.place("losses/total")        # ("train", "Losses/total")
    runs.place("val/losses/total")    # ("val", "Losses/total"): both curves share a chart
    runs.place("val/accuracy")        # ("val", "Metrics/accuracy")
    runs.place("steps_per_second")    # ("train", "Training/steps_per_second")

TensorBoard sorts its groups by name, scalars, images and histograms together, and opens the first
two. Capital letters come before small ones, so the losses and the metrics stand above the groups
that the user has named.
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
        group, _, rest = tag.partition("/")
        if group in BOOKKEEPING and run == TRAIN:
            return run, f"Training/{tag}"
        if group == "losses" and rest:
            return run, f"Losses/{rest}"
        return run, tag if "/" in tag else f"Metrics/{tag}"

    def split(self, name: str) -> tuple[str, str]:
        """Returns the run and the tag of a summary that is no scalar: its name in the run."""
        prefix, slash, rest = name.partition("/")
        return (prefix, rest) if slash and rest and prefix in self.names else (TRAIN, name)


def may_be_run(name: str) -> bool:
    """Whether an evaluation of an earlier call may have written to a directory of this name."""
    return name not in _TAKEN
