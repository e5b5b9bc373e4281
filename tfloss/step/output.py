"""What a step reports, on its way from replicas to the engine. Trace time.

A replica's numbers travel as one vector, so that they cost one reduction with the gradients;
`ReplicaReport` says what is in it. `StepReport` gathers what the `minimize` calls of one step
found, reduced over replicas, and `StepOutput` is what the step returns.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError, SummaryError
from tfloss.forward.context import ForwardContext
from tfloss.forward.recorded_summaries import RecordedSummary

TOTAL = "total"


@dataclasses.dataclass
class StepOutput:
    """What one traced step reports, reduced over replicas.

    Attributes:
      scalars: `{tag: float32 scalar}`: `losses/<name>`, `losses/total`, and whatever else is
        known on every step; the model's scalar summaries where they are due.
      summaries: the other summaries that are due.
      dropped: whether the forward pass has summaries that are not due.
      vectors: what scalars were taken out of, and what each of its elements is.
    """

    scalars: dict[str, tf.Tensor]
    summaries: list[RecordedSummary]
    dropped: bool = False
    vectors: list[tuple[tf.Tensor, list[tf.Tensor]]] = dataclasses.field(default_factory=list)

    def row(self) -> tf.Tensor:
        """All scalars in one vector. Traced.

        Pieces of vectors go in whole: to take a hundred losses apart and put them together again
        would cost more than to compute them.
        """
        places = {id(x): (v, i) for v, each in self.vectors for i, x in enumerate(each)}
        pieces: list[tuple[Any, int, list[tf.Tensor]]] = []  # a vector or None, its first, which
        for scalar in self.scalars.values():
            vector, index = places.get(id(scalar), (None, 0))
            if pieces:
                last, first, inside = pieces[-1]
                if last is vector and (vector is None or first + len(inside) == index):
                    inside.append(scalar)
                    continue
            pieces.append((vector, index, [scalar]))
        parts = [
            tf.stack(inside) if vector is None else vector[first : first + len(inside)]
            for vector, first, inside in pieces
        ]
        return tf.concat(parts, 0)


@dataclasses.dataclass(frozen=True)
class ReplicaReport:
    """What is in the vector of one replica, and which summaries go beside it.

    It holds no tensors of use: it is the same on every replica and outlives the graph of a
    compiled function.
    """

    losses: tuple[str, ...]
    returned: frozenset[str]
    weighted: tuple[str, ...]
    scalars: tuple[str, ...]
    summed: tuple[str, ...]
    summaries: dict[str, RecordedSummary]
    dropped: bool
    reached: dict[str, tuple[int, ...]]

    @classmethod
    def pack(
        cls,
        losses: Mapping[str, tf.Tensor],
        returned: Iterable[str],
        weighted: Mapping[str, tf.Tensor],
        total: tf.Tensor,
        context: ForwardContext,
        gradients: Mapping[str, list[Any]],
    ) -> tuple["ReplicaReport", tf.Tensor, dict[str, tf.Tensor]]:
        """The report, the vector and the summaries' tensors of one replica. Replica code.

        Every number counts by the replica's share of the examples, so that the sum over
        replicas (and micro-batches) is the mean over examples, except of what is to be summed.

        Args:
          returned: the names that the forward pass gave itself.
          gradients: `{group: gradient or None of each of its variables}`.
        """
        changed = {k: v for k, v in weighted.items() if v is not losses[k]}
        scalars = {k: v for k, v in context.summaries.items() if v.kind == "scalar"}
        others = {k: v for k, v in context.summaries.items() if v.kind != "scalar"}
        report = cls(
            losses=tuple(losses),
            returned=frozenset(returned),
            weighted=tuple(changed),
            scalars=tuple(scalars),
            summed=tuple(k for k, v in scalars.items() if v.reduce == "sum"),
            summaries=others,
            dropped=context.dropped,
            reached={
                group: tuple(i for i, g in enumerate(each) if g is not None)
                for group, each in gradients.items()
            },
        )
        values = [*losses.values(), *changed.values(), *(v.value for v in scalars.values()), total]
        vector = tf.stack(values)
        if not isinstance(context.example_weight, float):
            # An empty replica's means are NaN, and count nothing.
            vector = tf.where(context.example_weight > 0, vector, 0.0)
        if not (isinstance(context.example_weight, float) and context.example_weight == 1.0):
            before = len(report.losses) + len(report.weighted)
            summed = [False] * before + [k in report.summed for k in report.scalars] + [False]
            vector = tf.where(summed, vector, vector * context.example_weight)
        return report, vector, {k: v.value for k, v in others.items()}

    def watched(self, vector: tf.Tensor) -> tf.Tensor:
        """Of the vector, the losses and their total. Traced."""
        if not (self.weighted or self.scalars):
            return vector
        return tf.concat([vector[: len(self.losses)], vector[-1:]], 0)


@dataclasses.dataclass
class StepReport:
    """What the `minimize` calls of one step have reported so far, reduced over replicas."""

    recording: bool
    losses: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    weighted: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    totals: list[tf.Tensor] = dataclasses.field(default_factory=list)
    scalars: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    summaries: dict[str, RecordedSummary] = dataclasses.field(default_factory=dict)
    updates: list[tf.Tensor] = dataclasses.field(default_factory=list)
    applied: list[tf.Tensor] = dataclasses.field(default_factory=list)
    vectors: list[tuple[tf.Tensor, list[tf.Tensor]]] = dataclasses.field(default_factory=list)
    dropped: bool = False

    def add(
        self,
        replica: ReplicaReport,
        values: tf.Tensor,
        summaries: Mapping[str, list[tf.Tensor]],
    ) -> dict[str, tf.Tensor]:
        """Takes one `minimize`: its vector and, by name, each replica's (and batch's) summary.

        Returns the losses. Raises LossError or SummaryError for a name that an earlier
        `minimize` of the step has used.
        """
        each = tf.unstack(values)
        self.vectors.append((values, each))
        numbers = iter(each)
        names = {name: self._named(name, name in replica.returned) for name in replica.losses}
        losses = {new: next(numbers) for new in names.values()}
        self.losses.update(losses)
        self.weighted.update({names[name]: next(numbers) for name in replica.weighted})
        for name in replica.scalars:
            _keep(self.scalars, name, next(numbers))
        self.totals.append(next(numbers))
        self.dropped |= replica.dropped
        for name, recorded in replica.summaries.items():
            found = summaries[name]
            merged = tf.concat(found, 0) if recorded.kind == "histogram" else found[0]
            _keep(self.summaries, name, dataclasses.replace(recorded, value=merged))
        return losses

    def _named(self, name: str, returned: bool) -> str:
        """A name no earlier `minimize` has used. Paths and `regularization` can't be chosen."""
        if name in self.losses and returned:
            raise LossError(
                f"Two `minimize` calls of one step report a loss named {name!r}. Return a "
                "mapping with another name from one of them."
            )
        return unique_name(name, self.losses)

    def output(self, shown: Mapping[str, tf.Tensor]) -> StepOutput:
        """Everything by its tag. `shown` is what `TrainStep.step` returned."""
        scalars = {f"losses/{name}": tf.cast(value, tf.float32) for name, value in shown.items()}
        scalars[f"losses/{TOTAL}"] = sum(self.totals[1:], self.totals[0])
        scalars |= {f"weighted_losses/{name}": value for name, value in self.weighted.items()}
        for name, value in self.scalars.items():
            if name in scalars:
                raise SummaryError(f"Summary {name!r} has the name of a loss's own curve.")
            scalars[name] = value
        return StepOutput(scalars, list(self.summaries.values()), self.dropped, self.vectors)


def _keep(into: dict, name: str, value: Any) -> None:
    if name in into:
        raise SummaryError(
            f"Summary {name!r} is recorded by two `minimize` calls of one step. Wrap one in "
            "`with tfloss.summary.scope('...')`."
        )
    into[name] = value
