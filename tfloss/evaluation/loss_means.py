"""The means of validation losses over batches that may have different numbers of examples.

Host code.
"""

import warnings
from collections.abc import Mapping, Sequence

from tfloss.data.batch_layout import BatchLayout
from tfloss.errors import DataError


class LossMeans:
    """The mean of each loss, in which every example counts once.

    Where nobody has said what an example is, and the batches' sizes don't tell, every batch counts
    once, as it does in training. A warning says so.

    Args:
      layout: What counts as an example.
    """

    def __init__(self, layout: BatchLayout):
        self._layout = layout
        self._sizes: list[Mapping[str, int]] = []  # of each batch
        self._parts: list[list[tuple[int, Sequence[float]]]] = []  # count and losses of each part

    def add(
        self,
        sizes: Mapping[str, int],
        counts: Sequence[int | None],
        losses: Sequence[Sequence[float]],
    ) -> None:
        """Adds a batch.

        Args:
          sizes: The first dimensions of the whole batch, from `BatchLayout.sizes`.
          counts: For each part, the result of `BatchLayout.count`.
          losses: For each part, its losses.
        """
        self._sizes.append(sizes)
        # A batch of scalars has no examples to count.
        weights = [1 if count is None else count for count in counts]
        self._parts.append(list(zip(weights, losses, strict=True)))

    def result(self, names: Sequence[str]) -> dict[str, float]:
        """Returns `{name: mean}`.

        Args:
          names: The names of the losses.

        Raises:
          DataError: There is no example.
        """
        totals = [sum(weight for weight, _ in parts) for parts in self._parts]
        if not any(totals):
            raise DataError("The data set to evaluate on is empty.")
        scales = [1.0] * len(totals)
        if names and (problem := self._layout.unclear(self._sizes)):
            warnings.warn(
                f"Validation losses are means in which every batch counts once. {problem}",
                stacklevel=2,
            )
            scales = [1.0 / total if total else 0.0 for total in totals]
        whole = sum(total * scale for total, scale in zip(totals, scales, strict=True))
        return {
            name: sum(
                weight * scale * losses[column]
                for parts, scale in zip(self._parts, scales, strict=True)
                for weight, losses in parts
                if weight  # a loss of no examples may be NaN
            )
            / whole
            for column, name in enumerate(names)
        }
