"""What one step returns, on the way from the replicas to the engine. Trace time.

A replica's numbers travel as one vector, so that they cost one reduction with the gradients;
`ReplicaSpec` describes the vector. `OutputBuilder` gathers what the `minimize` calls of one step
found, reduced over replicas, and `StepOutput` is what the step returns.

A step may repeat a `minimize` call: one of the same groups that reports the same names. The curves
are means over these calls, the total included.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError, SummaryError
from tfloss.forward.context import ForwardContext
from tfloss.forward.losses import TOTAL
from tfloss.forward.recorded_summaries import RecordedSummary
from tfloss.step.watched import Watched

Vectors = list[tuple[tf.Tensor, list[tf.Tensor]]]
"""Vectors, each with the scalars that were taken out of it, in order."""


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What one traced step returns, reduced over replicas.

    Attributes:
      scalars: `{tag: float32 scalar}`: `losses/<name>`, `losses/total`, and whatever else is
        known on every step; the model's scalar summaries where they are due.
      summaries: The other summaries that are due.
      dropped: Names of the summaries of the forward pass that are not due.
      losses: `{tag: name}` of the losses that the step returned, and of their total, which is last.
      graphs: The graphs that XLA compiles, in the mode "step".
      vectors: The vectors that scalars were taken out of.
      passed: bool scalar: losses and gradients are finite, or may be skipped.
      losses_passed: The same of losses alone.
      watched: What was watched, of each `minimize` call.
    """

    scalars: dict[str, tf.Tensor]
    summaries: list[RecordedSummary] = dataclasses.field(default_factory=list)
    dropped: tuple[str, ...] = ()
    losses: dict[str, str] = dataclasses.field(default_factory=dict)
    graphs: list[tf.Graph] = dataclasses.field(default_factory=list)
    vectors: Vectors = dataclasses.field(default_factory=list)
    passed: tf.Tensor | bool = True
    losses_passed: tf.Tensor | bool = True
    watched: tuple[Watched, ...] = ()

    def tags(self) -> list[str]:
        """All names that such steps log: scalars, and summaries, whether they are due or not."""
        return [*self.scalars, *(one.name for one in self.summaries), *self.dropped]

    def row(self) -> tf.Tensor:
        """All scalars in one vector. Traced.

        Pieces of vectors are kept together: to take a hundred losses apart and to put them
        together again would cost more than to compute them.

        Returns:
          float32 [scalars].
        """
        places = {id(x): (v, i) for v, each in self.vectors for i, x in enumerate(each)}
        # A vector or None, the index of its first scalar, the scalars.
        pieces: list[tuple[Any, int, list[tf.Tensor]]] = []
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
class ReplicaSpec:
    """Describes the vector of one replica, and the summaries that go beside it.

    The vector holds the losses, the weighted losses, the scalar summaries and the total, in this
    order. The description is the same on every replica and outlives the graph of a compiled
    function, so its tensors can't be used.

    Attributes:
      losses: Names of the losses.
      returned: Names that the forward pass returned (other names follow from layers).
      weighted: Names of the losses that have a weight.
      scalars: Names of the scalar summaries.
      summed: Names of the scalar summaries that are summed over replicas.
      summaries: The other summaries, by name.
      dropped: Names of the summaries of the forward pass that are not due.
      reached: `{group: indices of its variables that a loss reaches}`, except for those of
        `overwritten`.
      overwritten: The same for variables that Keras overwrites with their gradient.
    """

    losses: tuple[str, ...]
    returned: frozenset[str]
    weighted: tuple[str, ...]
    scalars: tuple[str, ...]
    summed: tuple[str, ...]
    summaries: dict[str, RecordedSummary]
    dropped: tuple[str, ...]
    reached: dict[str, tuple[int, ...]]
    overwritten: dict[str, tuple[int, ...]]

    @classmethod
    def pack(
        cls,
        losses: Mapping[str, tf.Tensor],
        returned: Iterable[str],
        weighted: Mapping[str, tf.Tensor],
        total: tf.Tensor,
        context: ForwardContext,
        reached: dict[str, tuple[int, ...]],
        overwritten: dict[str, tuple[int, ...]],
    ) -> tuple["ReplicaSpec", tf.Tensor, dict[str, tf.Tensor]]:
        """Packs the results of one replica. Replica code, traced.

        Every number counts by the replica's example weight, so that the sum over replicas (and
        micro-batches) is the mean over examples, except of summaries that are summed.

        Args:
          losses: `{name: float32 scalar}`.
          returned: Names of the losses that the forward pass returned.
          weighted: The losses times their weights.
          total: Sum of the weighted losses.
          context: Context of the forward pass.
          reached: The attribute.
          overwritten: The attribute.

        Returns:
          The description, the vector, and the tensors of the other summaries by name.
        """
        changed = {k: v for k, v in weighted.items() if v is not losses[k]}
        scalars = {k: v for k, v in context.summaries.items() if v.kind == "scalar"}
        others = {k: v for k, v in context.summaries.items() if v.kind != "scalar"}
        spec = cls(
            losses=tuple(losses),
            returned=frozenset(returned),
            weighted=tuple(changed),
            scalars=tuple(scalars),
            summed=tuple(k for k, v in scalars.items() if v.reduce == "sum"),
            summaries=others,
            dropped=context.dropped,
            reached=reached,
            overwritten=overwritten,
        )
        values = [*losses.values(), *changed.values(), *(v.value for v in scalars.values()), total]
        vector, weight = tf.stack(values), context.example_weight
        if not isinstance(weight, float):
            # The means of an empty replica are NaN, and count nothing.
            vector = tf.where(weight > 0, vector, 0.0)
        if not (isinstance(weight, float) and weight == 1.0):
            before = len(spec.losses) + len(spec.weighted)
            summed = [False] * before + [k in spec.summed for k in spec.scalars] + [False]
            vector = tf.where(summed, vector, vector * weight)
        return spec, vector, {k: v.value for k, v in others.items()}

    def losses_and_total(self, vector: tf.Tensor) -> tf.Tensor:
        """The part of the vector that holds the losses and their total. Traced.

        Args:
          vector: float32 vector as `pack` returned it, reduced or not.
        """
        if not (self.weighted or self.scalars):
            return vector
        return tf.concat([vector[: len(self.losses)], vector[-1:]], 0)


class OutputBuilder:
    """Gathers what the `minimize` calls of one step found, reduced over replicas.

    Attributes:
      losses: `{name: float32 scalar}`.
      pattern_names: `{name in its forward pass: name of its curve}`, of the latest `minimize`
        call with this name. Loss weights use the former.
      updates: Tensors that come after the updates of the step.
      applied: bool scalars, whether each update was applied; empty if none can be skipped.
      graphs: The graphs that XLA compiles.
      passed: bool scalars, whether the check of each update passed.
      losses_passed: The same of its losses alone.
      watched: What was watched, of each `minimize` call.
    """

    def __init__(self) -> None:
        self.losses: dict[str, tf.Tensor] = {}
        self.pattern_names: dict[str, str] = {}
        self.updates: list[tf.Tensor] = []
        self.applied: list[tf.Tensor] = []
        self.graphs: list[tf.Graph] = []
        self.passed: list[tf.Tensor] = []
        self.losses_passed: list[tf.Tensor] = []
        self.watched: list[Watched] = []
        self._weighted: dict[str, tf.Tensor] = {}
        self._totals: list[tf.Tensor] = []
        self._scalars: dict[str, tf.Tensor] = {}  # summaries
        self._summaries: dict[str, RecordedSummary] = {}
        self._own: dict[str, tf.Tensor] = {}
        self._vectors: Vectors = []
        self._calls: dict[Any, list[tuple[tf.Tensor, list[tf.Tensor]]]] = {}
        self._names: dict[Any, dict[str, str]] = {}
        self._dropped: tuple[str, ...] = ()

    def add(
        self,
        spec: ReplicaSpec,
        vector: tf.Tensor,
        summaries: Mapping[str, list[tf.Tensor]],
        groups: Iterable[str],
    ) -> dict[str, tf.Tensor]:
        """Adds the results of one `minimize` call.

        Args:
          spec: Description of the vector.
          vector: float32 vector, reduced over replicas.
          summaries: `{name: the tensors of each replica and micro-batch}`.
          groups: Names of the groups that the call may update.

        Returns:
          The losses by name, float32 scalars.

        Raises:
          LossError: A name was returned by an earlier `minimize` call of the step, which this one
            does not repeat.
          SummaryError: The same of a summary.
        """
        each = tf.unstack(vector)
        kind = (*groups,), spec.losses, spec.weighted, spec.scalars, (*spec.summaries,)
        calls = self._calls.setdefault(kind, [])
        calls.append((vector, each))
        if len(calls) > 1:
            self._add_histograms(spec, summaries)
            return {name: each[i] for i, name in enumerate(self._names[kind].values())}
        self._vectors.append((vector, each))
        numbers = iter(each)
        names: dict[str, str] = {}
        losses: dict[str, tf.Tensor] = {}
        for name in spec.losses:
            names[name] = self._loss_name(name, spec, losses)
            losses[names[name]] = next(numbers)
        self._names[kind] = names
        self.losses.update(losses)
        self.pattern_names.update(names)
        self._weighted.update({names[name]: next(numbers) for name in spec.weighted})
        for name in spec.scalars:
            _add_summary(self._scalars, name, next(numbers))
        self._totals.append(next(numbers))
        self._dropped = (*self._dropped, *spec.dropped)
        for name, recorded in spec.summaries.items():
            found = summaries[name]
            merged = tf.concat(found, 0) if recorded.kind == "histogram" else found[0]
            _add_summary(self._summaries, name, dataclasses.replace(recorded, value=merged))
        return losses

    def add_scalar(self, tag: str, value: tf.Tensor) -> None:
        """Adds a number of the step itself. A later one of the same tag replaces it.

        Args:
          tag: Tag of the scalar.
          value: float32 scalar.
        """
        self._own[tag] = value

    def scalar(self, tag: str) -> tf.Tensor | None:
        """The scalar that was last added under this tag, or None."""
        return self._own.get(tag)

    def build(self, shown: Mapping[str, tf.Tensor]) -> StepOutput:
        """The output of the step.

        Args:
          shown: Losses as `TrainStep.step` returned them.

        Raises:
          LossError: `TrainStep.step` returned a loss named "total".
          SummaryError: A summary has the tag of a loss or of another scalar of the step.
        """
        if TOTAL in shown:
            raise LossError(
                f"`step` returned a loss named {TOTAL!r}: tfloss itself uses this name for the "
                "weighted sum of all losses, the objective. Return it under another name."
            )
        means = self._means()
        scalars = {
            f"losses/{name}": tf.cast(means.get(id(value), value), tf.float32)
            for name, value in shown.items()
        }
        totals = [means.get(id(value), value) for value in self._totals]
        scalars[f"losses/{TOTAL}"] = sum(totals[1:], totals[0])
        scalars |= {f"weighted_losses/{name}": value for name, value in self._weighted.items()}
        scalars |= self._own
        for name in self._scalars:
            if name in scalars:
                raise SummaryError(
                    f"Summary {name!r} has the name of a curve that tfloss writes itself. Give it "
                    "another name."
                )
        scalars |= self._scalars
        scalars = {name: means.get(id(value), value) for name, value in scalars.items()}
        return StepOutput(
            scalars=scalars,
            summaries=list(self._summaries.values()),
            dropped=self._dropped,
            losses={f"losses/{name}": name for name in (*shown, TOTAL)},
            graphs=self.graphs,
            vectors=self._vectors,
            passed=_all(self.passed),
            losses_passed=_all(self.losses_passed),
            watched=tuple(self.watched),
        )

    def _means(self) -> dict[int, tf.Tensor]:
        """The means of the scalars of repeated calls, by the id of the scalar in each call."""
        found: dict[int, tf.Tensor] = {}
        for calls in self._calls.values():
            if len(calls) > 1:
                mean = tf.add_n([vector for vector, _ in calls]) / float(len(calls))
                of_each = tf.unstack(mean)
                self._vectors.append((mean, of_each))
                for _, each in calls:
                    found |= {id(x): one for x, one in zip(each, of_each, strict=True)}
        return found

    def _add_histograms(self, spec: ReplicaSpec, summaries: Mapping[str, list[tf.Tensor]]) -> None:
        """Adds the values of a repeated call to its histograms. Images are those of the first."""
        for name, recorded in spec.summaries.items():
            if recorded.kind == "histogram":
                before = self._summaries[name]
                merged = tf.concat([before.value, *summaries[name]], 0)
                self._summaries[name] = dataclasses.replace(before, value=merged)

    def _loss_name(self, name: str, spec: ReplicaSpec, taken: Mapping[str, Any]) -> str:
        """A name that no earlier `minimize` call has used, if it is not the user's choice."""
        if name in self.losses and name in spec.returned:
            raise LossError(
                f"Two `minimize` calls of one step report a loss named {name!r}. Return a "
                "mapping with another name from one of them. (Only a call for the same groups that "
                "reports all the same names repeats an earlier one.)"
            )
        if name not in self.losses:
            return name
        return unique_name(name, {*self.losses, *spec.losses, *taken})


def _all(passed: list[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all(passed) if len(passed) > 1 else passed[0]


def _add_summary(into: dict[str, Any], name: str, value: Any) -> None:
    if name in into:
        raise SummaryError(
            f"Summary {name!r} is recorded by two `minimize` calls of one step. Wrap one in "
            "`with tfloss.summary.scope('...')`."
        )
    into[name] = value
