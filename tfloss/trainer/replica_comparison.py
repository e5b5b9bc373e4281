"""Compares the losses and gradients of several replicas with those of a single one. Host code.

One global batch is computed twice: divided over the replicas of the trainer's strategy, and as a
whole by the first replica alone. What differs depends on the number of replicas. A model that draws
random numbers differs anyway, so the single replica computes the batch twice, with other numbers,
and only a difference much larger than between these two counts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import MicroBatches
from tfloss.data.feed import Feed
from tfloss.inspect.report import Finding, Inspection
from tfloss.inspect.source_lines import running_lines
from tfloss.step.backward import Backward
from tfloss.step.example_weights import example_weights
from tfloss.step.observation import Observation
from tfloss.step.trace_options import TraceOptions
from tfloss.step.traced_calls import split_static
from tfloss.trainer.replica_causes import Cause, likely_causes

_TOLERANCE = 1e-3  # rounding of float32, in sums over a batch
_NOISE = 5.0  # how much larger a difference must be than that of other random numbers
LOSS = "Loss that changes with the number of replicas"
GRADIENT = "Gradient that changes with the number of replicas"


@dataclasses.dataclass(frozen=True)
class _Values:
    """What one pass computes over all examples: losses by name, gradients by path."""

    losses: dict[str, float]
    gradients: dict[str, np.ndarray]


def compared(trainer: Any, data: Any, report: Inspection) -> Inspection:
    """Adds a finding for each loss and gradient that changes with the number of replicas.

    It computes a batch, which changes statistics and random states. So the script must end then.

    Args:
      trainer: A trainer under a strategy of several replicas.
      data: The data that it trains on.
      report: The report so far.
    """
    strategy, step = trainer.strategy, trainer.train_step
    feed: Feed = trainer._next_feed(data)
    whole = next(iter(feed.reader.dataset))
    parts = next(feed.reader.open())
    seen: list[Observation] = []
    passes: list[tuple[Backward, dict[str, list[Cause]]]] = []
    outside = running_lines()

    def observe(one: Observation) -> None:
        replica = tf.distribute.get_replica_context()
        if replica is None or not tf.get_static_value(replica.replica_id_in_sync_group):
            seen.append(one)
            causes = {
                name: likely_causes(loss, one, trainer.model, outside)
                for name, loss in one.losses.items()
            }
            passes.append((_pass(trainer, one), causes))

    spec = tf.nest.map_structure(tf.type_spec_from_value, parts)
    options = TraceOptions(observe=observe)
    tf.function(
        lambda each: step(step.gathered(each), options).row(), autograph=False
    ).get_concrete_function((spec,) * step.accumulate)
    findings: list[Finding] = []
    known: set[tuple[str, ...]] = set()
    for backward, causes in passes:
        names = tuple(causes)
        if names in known:
            continue
        known.add(names)
        single = [_on_one(strategy, backward, whole) for _ in range(2)]
        several = _on_all(strategy, backward, parts)
        findings += _differences(single, several, causes, strategy.num_replicas_in_sync, report)
    return dataclasses.replace(report, findings=(*report.findings, *findings))


def _pass(trainer: Any, seen: Observation) -> Backward:
    return Backward(
        trainer.model,
        seen.forward,
        seen.variables,
        list(seen.gradients),
        seen.weights,
        recording=False,
        jit=False,
        layout=trainer.train_step.batch_layout,
    )


def _on_one(strategy: Any, backward: Backward, batch: Any) -> _Values:
    """The values of the whole batch, computed by the first replica alone."""
    run, traces = _computed(backward)
    with strategy.scope(), _upstream.as_single_replica():
        vector, gradients = tf.function(lambda whole: run(whole, 1.0), autograph=False)(batch)
    return _values(backward, traces[-1], [vector], [gradients])


def _on_all(strategy: Any, backward: Backward, parts: Any) -> _Values:
    """The values of the batch, divided over the replicas."""
    run, traces = _computed(backward)

    def together(parts: Any) -> Any:
        weights = example_weights(strategy, MicroBatches([parts]), backward.layout)
        return strategy.run(run, args=(parts, weights[0]))

    vector, gradients = tf.function(together, autograph=False)(parts)
    local = strategy.experimental_local_results
    return _values(backward, traces[-1], local(vector), local(gradients))


def _computed(backward: Backward) -> tuple[Any, list[Any]]:
    """A function of a batch and its weight that returns the vector and dense gradients."""

    def compute(batch: Any, weight: Any) -> Any:
        step = tf.constant(0, tf.int64)
        (vector, gradients, _), trace = backward(batch, step, weight, None, None)
        dense = [tf.convert_to_tensor(one) for each in gradients.weights for one in each]
        return (vector, dense), trace

    return split_static(compute)


def _values(backward: Backward, trace: Any, vectors: Sequence[Any], each: Sequence[Any]) -> _Values:
    spec = trace.spec
    total = np.sum([one.numpy() for one in vectors], axis=0)
    paths = [backward.variables[k][i].path for k, mine in spec.reached.items() for i in mine]
    sums = [np.sum([one.numpy().astype(np.float64) for one in same], 0) for same in zip(*each)]  # noqa: B905
    return _Values(
        dict(zip(spec.losses, total.tolist(), strict=False)), dict(zip(paths, sums, strict=True))
    )


def _differences(
    single: Sequence[_Values],
    several: _Values,
    causes: dict[str, list[Cause]],
    replicas: int,
    report: Inspection,
) -> list[Finding]:
    findings: list[Finding] = []
    changed: list[str] = []
    for name, value in several.losses.items():
        first, again = (one.losses[name] for one in single)
        if not _differ(np.asarray(first), np.asarray(value), np.asarray(again)):
            continue
        changed.append(name)
        found = causes.get(name) or [Cause.unknown()]
        if found[0].is_unknown and abs(value * replicas - first) < 0.02 * abs(first):
            found = [Cause.sum(found[0].line)]
        what = f"loss {name!r} is {first:.6g} on 1 replica and {value:.6g} on {replicas}"
        findings += [Finding(LOSS, what, cause.line, cause.text) for cause in found]
    largest = max(map(np.linalg.norm, several.gradients.values()), default=0.0)
    reached = {one.path: one.losses for one in report.variables}
    for path, value in several.gradients.items():
        first, again = (one.gradients[path] for one in single)
        losses = reached.get(path, ())
        # A gradient that is 0 but for rounding, as of a bias before BatchNormalization.
        rounding = 1e-5 * float(largest)
        if not _differ(first, value, again, rounding) or set(changed) & set(losses):
            continue  # that of a loss that changes is no news
        what = (
            f"the gradient of {path!r} has the norm {np.linalg.norm(first):.6g} on 1 replica and "
            f"{np.linalg.norm(value):.6g} on {replicas}; it comes from {', '.join(losses)}"
        )
        found = [c for name in losses for c in causes.get(name, ())] or [Cause.unknown()]
        findings += [Finding(GRADIENT, what, cause.line, cause.text) for cause in found]
    return list(dict.fromkeys(findings))


def _differ(
    single: np.ndarray, several: np.ndarray, again: np.ndarray, rounding: float = 1e-7
) -> bool:
    difference, noise = np.linalg.norm(several - single), np.linalg.norm(again - single)
    scale = max(np.linalg.norm(single), np.linalg.norm(several))
    return bool(difference > _TOLERANCE * scale + rounding and difference > _NOISE * noise)
