"""What a look at a run before training found: a typed report, as text and as JSON. Host code.

report = trainer.inspect(data)
print(report)
report.to_json()                    # dicts, lists, strings and numbers
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NOT_IN_CODE = "not in your code"
_MOST_LOSSES = 8  # named in the short form


@dataclasses.dataclass(frozen=True)
class InspectedLoss:
    """A loss of the training forward.

    Attributes:
      name: Its name.
      layer: Path of the layer that added it, or of the model that returned it.
      weight: Its weight: a number, or the name of a function or variable.
      dtype: The dtype in which the model computed it.
      line: The line of the user's source that computed it.
      groups: Names of the optimizer groups that it trains.
    """

    name: str
    layer: str
    weight: float | str
    dtype: str
    line: str
    groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class InspectedVariable:
    """A variable of the model.

    Attributes:
      path: Its path.
      shape: Its shape.
      dtype: Its dtype.
      group: The optimizer group that trains it; empty if none does.
      trainable: Whether it is trainable now.
      rate_multiplier: Factor of its updates, see `tfloss.Group`.
      losses: Names of the losses whose gradient reaches it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    trainable: bool
    rate_multiplier: float
    losses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in the model that may not be meant.

    Attributes:
      kind: What it is, one of the headings of docs/inspect.md.
      subject: The op, variable, layer or loss.
      line: The line of the user's source.
      cure: What to do, a sentence; or empty.
    """

    kind: str
    subject: str
    line: str
    cure: str

    def __str__(self) -> str:
        """Returns the finding as one line."""
        where = f" ({self.line})" if self.line else ""
        return f"{self.kind}: {self.subject}{where}.{f' {self.cure}' if self.cure else ''}"


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one step on one replica computes and needs.

    Attributes:
      flops: Floating-point operations. A multiplication and an addition are two.
      variable_bytes: Bytes of all variables: weights, slots of optimizers, and others.
      peak_bytes: Predicted peak of the memory of a step: its tensors, and the variables.
      peak_block_bytes: The most that TensorFlow's allocator may take for them.
      unknown: What could not be counted, in words: loops, shapes that depend on values.
    """

    flops: int
    variable_bytes: int
    peak_bytes: int
    peak_block_bytes: int
    unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `Trainer.inspect` found.

    Attributes:
      model: Name of the model.
      parameters: Number of its weights.
      trainable_parameters: Number of those that are trained.
      groups: Names of the optimizer groups, each with the class of its optimizer.
      replicas: Number of replicas.
      batch_size: Examples in a global batch, or None if that is unknown.
      workdir: The workdir, or None.
      losses: The losses, in the order of the forward pass.
      variables: All variables of the model.
      summaries: Names of the summaries.
      state_updates: Paths of the variables that the forward pass changes.
      findings: What may not be meant.
      cost: FLOPs and memory of a step on one replica.
    """

    model: str
    parameters: int
    trainable_parameters: int
    groups: dict[str, str]
    replicas: int
    batch_size: int | None
    workdir: str | None
    losses: tuple[InspectedLoss, ...]
    variables: tuple[InspectedVariable, ...]
    summaries: tuple[str, ...]
    state_updates: tuple[str, ...]
    findings: tuple[Finding, ...]
    cost: StepCost

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Returns the report as text."""
        return "\n".join(self._lines())

    def tables(self) -> dict[str, list[list[str]]]:
        """Returns the tables of the report as texts: by title, the rows, the first is a header."""
        losses = [
            [one.name, one.layer, number(one.weight), one.dtype, ", ".join(one.groups), one.line]
            for one in self.losses
        ]
        return {
            "Losses": [["loss", "layer", "weight", "dtype", "trains", "line"], *losses],
            "Variables": variables_table(self.variables),
        }

    def headline(self) -> list[list[str]]:
        """Returns what is known of the run as a whole: rows of a name and a value."""
        cost = self.cost
        return [
            ["model", self.model],
            *short_form(
                parameters=self.parameters,
                trained=self.trainable_parameters,
                losses=[one.name for one in self.losses],
                groups=self.groups,
                replicas=self.replicas,
                batch_size=self.batch_size,
                workdir=self.workdir,
            ),
            ["FLOPs", f"{cost.flops:,} a step and replica"],
            ["memory", f"{megabytes(cost.peak_bytes)} of tensors at the peak of a step, predicted"],
            ["", f"{megabytes(cost.variable_bytes)} of it for variables and optimizer slots"],
            ["", f"up to {megabytes(cost.peak_block_bytes)} in the blocks of the allocator"],
            *([["not counted", "; ".join(cost.unknown)]] if cost.unknown else []),
            ["summaries", ", ".join(self.summaries) or "none"],
            ["state changed", ", ".join(self.state_updates) or "none"],
        ]

    def _lines(self) -> Iterator[str]:
        yield from aligned(self.headline())
        for title, rows in self.tables().items():
            yield from ("", title, *aligned(rows))
        yield ""
        if self.findings:
            yield f"Findings: {len(self.findings)}"
            yield from (f"  {one}" for one in self.findings)
        else:
            yield "Findings: none"


def variables_table(variables: Iterable[InspectedVariable]) -> list[list[str]]:
    """Returns a table of variables as texts: the rows, the first is a header.

    Args:
      variables: The variables.
    """
    rows = [
        [
            one.path,
            "x".join(map(str, one.shape)) or "scalar",
            one.dtype,
            one.group or "-",
            "yes" if one.trainable else "no",
            f"{one.rate_multiplier:g}" if one.group else "-",
            ", ".join(one.losses) or "-",
        ]
        for one in variables
    ]
    return [["variable", "shape", "dtype", "group", "trainable", "rate", "reached by"], *rows]


def short_form(
    *,
    parameters: int,
    trained: int,
    losses: Sequence[str],
    groups: Mapping[str, str],
    replicas: int,
    batch_size: int | None,
    workdir: str | None,
) -> list[list[str]]:
    """Returns what a run is, in a few rows of a name and a value.

    Args:
      parameters: Number of weights.
      trained: Number of those that are trained.
      losses: Names of the losses.
      groups: Names of the optimizer groups, each with the class of its optimizer.
      replicas: Number of replicas.
      batch_size: Examples in a global batch, or None if that is unknown.
      workdir: The workdir, or None.
    """
    named = ", ".join(losses[:_MOST_LOSSES])
    if (more := len(losses) - _MOST_LOSSES) > 0:
        named += f" and {more} more"
    kinds = [kind if len(groups) == 1 else f"{name} ({kind})" for name, kind in groups.items()]
    batch = "unknown size" if batch_size is None else f"{batch_size:,} examples"
    return [
        ["parameters", f"{parameters:,} ({trained:,} trained)"],
        ["losses", named],
        ["optimizer", ", ".join(kinds)],
        ["batch", f"{batch}, on {replicas} replica{'s' * (replicas > 1)}"],
        ["workdir", workdir or "none: nothing is saved"],
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows of a table as lines of columns, two spaces apart and indented.

    Args:
      rows: The cells of each row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def megabytes(size: int) -> str:
    """Returns a number of bytes as text, such as `12.3 MB`."""
    return f"{size / 1e6:,.1f} MB"


def number(value: float | str) -> str:
    """Returns a weight as text, such as `0.5`; a text as it is."""
    return value if isinstance(value, str) else f"{value:g}"
