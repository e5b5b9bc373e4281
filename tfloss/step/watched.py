"""What `hooks.Watch` asks of a step, and what it gets: tensors in the step, arrays on the host."""

import dataclasses
from typing import Any

BUCKETS = 30  # of a histogram, as TensorBoard has them


@dataclasses.dataclass(frozen=True)
class WatchRequest:
    """What is watched.

    Attributes:
      variables: Globs of the trained variables (see `tfloss.optimizers.variable_globs`).
      shared: Globs of the variables on which the gradients of the losses are compared. Of these,
        the ones that at least two losses reach are used. Empty: losses are not compared.
      histograms: Whether histograms are computed, and not only norms.
    """

    variables: tuple[str, ...]
    shared: tuple[str, ...]
    histograms: bool


@dataclasses.dataclass(frozen=True)
class WatchedNames:
    """Names of what a `minimize` call has watched.

    Attributes:
      variables: Paths of the variables.
      losses: Names of the losses that its forward pass reports.
    """

    variables: tuple[str, ...]
    losses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Watched:
    """What a `minimize` call has watched: tensors in the step, arrays on the host.

    Attributes:
      names: Names of the rows.
      norms: float32 [variables, 3], of gradient, update, and weight before the update. Gradients
        are those that the optimizer gets.
      ranges: float32 [variables, 3, 2], the smallest and the largest element of each; empty without
        histograms.
      counts: int32 [variables, 3, BUCKETS], elements in buckets of one width; empty without them.
      products: float32 [losses, losses], scalar products of the losses' gradients on shared
        variables. 0 for losses that reach none.
      descent: float32 [losses], scalar product of the gradient of each loss and the update.
    """

    names: WatchedNames
    norms: Any
    ranges: Any
    counts: Any
    products: Any
    descent: Any

    def tensors(self) -> list[Any]:
        """Returns the tensors or arrays, in the order of the attributes."""
        return [self.norms, self.ranges, self.counts, self.products, self.descent]
