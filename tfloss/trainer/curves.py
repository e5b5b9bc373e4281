"""The curves of one call of `Trainer.train`, kept in memory for its result. Host code."""

from collections.abc import Mapping

_MAX_POINTS = 1000  # of a curve; then every second one is dropped


class Curves:
    """Keeps the losses and evaluation results that are logged.

    Args:
      prefixes: Beginnings of the tags to keep.

    Attributes:
      points: `{tag: {step: value}}`.
    """

    def __init__(self, prefixes: tuple[str, ...]):
        self.points: dict[str, dict[int, float]] = {}
        self._prefixes = prefixes

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the values of a log.

        Args:
          step: The step that they belong to.
          scalars: `{tag: value}`.
        """
        for tag, value in scalars.items():
            if tag.startswith(self._prefixes):
                curve = self.points.setdefault(tag, {})
                curve[step] = float(value)
                if len(curve) > _MAX_POINTS:
                    self.points[tag] = dict(list(curve.items())[::2])
