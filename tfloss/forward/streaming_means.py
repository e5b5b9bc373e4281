"""Means of a training run that are weighted, such as an accuracy over examples.

A step reports two columns: the sum of values times weights, and the sum of weights. Both are added
up over micro-batches, replicas and the steps between two logs, and divided only then. So each
example counts once, however it came into a batch. Host code, but for the names.
"""

from collections.abc import Mapping

WEIGHT = "\0weight"  # no name of a user contains it


def weight_column(name: str) -> str:
    """Returns the name of the column with the weights of a streaming mean.

    Args:
      name: Name of the mean.
    """
    return name + WEIGHT


def is_weight(name: str) -> bool:
    """Returns whether a column holds the weights of a streaming mean."""
    return name.endswith(WEIGHT)


def divided(sums: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
    """Divides streaming means by their weights, and leaves out those without any weight.

    Args:
      sums: `{column: sum over steps}`.
      means: `{column: mean over steps}`, for all that is no streaming mean.

    Returns:
      `{name: value}`.
    """
    found: dict[str, float] = {}
    for name, mean in means.items():
        if is_weight(name):
            continue
        weight = sums.get(weight_column(name))
        if weight is None:
            found[name] = mean
        elif weight != 0.0:  # a mean of nothing doesn't exist
            found[name] = sums[name] / weight
    return found
