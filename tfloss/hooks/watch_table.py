"""What one step has watched, as scalars, as histograms and as a table. Host code."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tfloss.step.watched import BUCKETS, Watched
from tfloss.summary import Summary

_KINDS = ("gradient", "update", "weight")


class WatchTable:
    """The numbers of one watched step.

    Args:
      step: The number of completed updates.
      watched: What each `minimize` call of the step has watched.

    Attributes:
      step: The argument.
      watched: The argument.
      norms: `{path of a variable: (norm of the gradient, of the update, of the weight)}`.
      losses: Names of the losses that reach shared variables.
      loss_norms: `{loss: norm of its gradient on them}`.
      cosines: `{(loss, loss): cosine of their gradients}`, for both orders and of one pass.
      shares: `{loss: its share of the update}`; NaN if the update changes no loss.
    """

    def __init__(self, step: int, watched: Sequence[Watched]):
        self.step, self.watched = step, watched
        self.norms: dict[str, tuple[float, float, float]] = {}
        self.loss_norms: dict[str, float] = {}
        self.cosines: dict[tuple[str, str], float] = {}
        self.shares: dict[str, float] = {}
        for one in watched:
            for path, row in zip(one.names.variables, one.norms.tolist(), strict=True):
                self.norms[path] = row[0], row[1], row[2]
            self._compare(one)
        self.losses = tuple(self.loss_norms)

    def _compare(self, one: Watched) -> None:
        """Adds the losses of a `minimize` call, if at least two of them share variables."""
        names, norms = one.names.losses, np.sqrt(np.diag(one.products).astype(np.float64))
        reached = [i for i in range(len(names)) if norms[i] > 0]
        total = float(one.descent.sum(dtype=np.float64))
        for i in reached if len(reached) > 1 else ():
            self.loss_norms[names[i]] = float(norms[i])
            self.shares[names[i]] = float(one.descent[i]) / total if total else math.nan
            for j in reached:
                cosine = float(one.products[i, j]) / (norms[i] * norms[j])
                self.cosines[names[i], names[j]] = min(1.0, max(-1.0, cosine))

    @property
    def ratios(self) -> Mapping[str, float]:
        """`{path: norm of the update, divided by that of the weight}`; NaN for a weight of 0."""
        return {k: u / w if w else math.nan for k, (_, u, w) in self.norms.items()}

    def scalars(self) -> dict[str, float]:
        """Returns the curves' values by tag. Those that don't exist are left out."""
        found: dict[str, float] = {}
        for number, kind in enumerate(_KINDS):
            found |= {f"watch/{kind}_norm/{k}": row[number] for k, row in self.norms.items()}
        found |= {f"watch/update_ratio/{k}": ratio for k, ratio in self.ratios.items()}
        found |= {f"watch/loss_gradient_norm/{k}": norm for k, norm in self.loss_norms.items()}
        for i, one in enumerate(self.losses):
            for other in self.losses[i + 1 :]:
                if (one, other) in self.cosines:
                    found[f"watch/cosine/{one},{other}"] = self.cosines[one, other]
        found |= {f"watch/share/{k}": share for k, share in self.shares.items()}
        return {tag: value for tag, value in found.items() if math.isfinite(value)}

    def __str__(self) -> str:
        """The table as text, for people."""
        rows = [["variable", "gradient", "update", "weight", "update/weight"]]
        ratios = self.ratios
        rows += [[k, *map(_text, row), _text(ratios[k])] for k, row in self.norms.items()]
        parts = [f"Step {self.step}: norms", *_aligned(rows)]
        if self.losses:
            rows = [["loss", "gradient", "share", *self.losses]]
            for one in self.losses:
                cosines = [self.cosines.get((one, other), math.nan) for other in self.losses]
                texts = ["-" if math.isnan(x) else f"{x:.2f}" for x in cosines]
                share = self.shares[one]
                percent = "-" if math.isnan(share) else f"{share:.0%}"
                rows.append([one, _text(self.loss_norms[one]), percent, *texts])
            parts += ["", "Losses: norm of the gradient on shared variables, share of the update, "]
            parts[-1] += "cosines"
            parts += _aligned(rows)
        return "\n".join(parts)


def histograms(watched: Sequence[Watched]) -> list[Summary]:
    """Returns the histograms, as summaries that are counted already.

    Args:
      watched: What each `minimize` call of a step has watched.
    """
    found: dict[str, Summary] = {}
    for one in watched:
        if not len(one.counts):
            continue
        low, high = np.split(one.ranges.astype(np.float64), 2, axis=-1)  # [variables, 3, 1]
        edges = low + (high - low) * np.linspace(0.0, 1.0, BUCKETS + 1)
        tables = np.stack([edges[..., :-1], edges[..., 1:], one.counts], axis=-1)
        for path, each in zip(one.names.variables, tables, strict=True):
            for kind, table in zip(_KINDS, each, strict=True):
                name = f"watch/{kind}/{path}"
                found[name] = Summary(name, "histogram", table, {"counted": True})
    return list(found.values())


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with columns of equal width: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
