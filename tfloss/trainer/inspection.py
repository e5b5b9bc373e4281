"""Looks at a run before training, without a training step: `trainer.inspect(data)`. Host code.

The step is traced, as `train` does it, for the shapes of the first batch. What the trace computes
is looked at (`tfloss.trainer.observed_pass`), and nothing of it runs. Then the inference forward is
traced too, to find the layers that only it uses.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.distributed import Data
from tfloss.data.feed import Feed
from tfloss.inspect.dynamic_shapes import dynamic_shapes
from tfloss.inspect.frozen_randomness import drawn_lines
from tfloss.inspect.report import Finding, InspectedVariable, Inspection, StepCost
from tfloss.inspect.source_lines import running_lines
from tfloss.inspect.step_cost import floating_point_operations, peak_block_bytes, peak_bytes
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.inspect.unsaveable_random_ops import find_unsaveable_ops
from tfloss.step.random_states import process_variables
from tfloss.step.trace_options import TraceOptions
from tfloss.step.train_step import TrainStep
from tfloss.trainer.arguments import build, check_trainable
from tfloss.trainer.epochs import Epochs
from tfloss.trainer.inference_layers import inference_only
from tfloss.trainer.observed_pass import ObservedPasses


class _Trainer(Protocol):
    """The part of a `Trainer` that an inspection needs."""

    model: keras.Model
    train_step: TrainStep
    strategy: tf.distribute.Strategy
    workdir: Path | None
    state: Any
    _epochs: Epochs

    def _next_feed(self, data: Data) -> Feed: ...


@filtered_tracebacks
def inspect(trainer: _Trainer, data: Data, batch_size: int | None = None) -> Inspection:
    """Looks at what training would do, without a training step. Host code.

    Weights, optimizer, random states and the position in the data stay as they are. The model is
    built if it isn't. The step is traced for the shapes of the first batch, which is read and given
    back if the data don't declare its shapes. Where they don't, and it can't be given back (a
    shuffle on several replicas), dimensions of unknown length count as 1.

    Args:
      trainer: The trainer.
      data: Data as `train` takes them.
      batch_size: The examples in a global batch, for arrays and tables.

    Returns:
      The report. `print(report)` shows it, `report.to_json()` returns JSON values.

    Raises:
      LossError, SummaryError, ModelError, DataError: What `train` would raise at its first step.
    """
    step = trainer.train_step
    check_trainable(step)
    data, _ = trainer._epochs.data_set(data, batch_size)  # pyright: ignore[reportPrivateUsage]
    feed = trainer._next_feed(data)  # pyright: ignore[reportPrivateUsage]
    build(step, feed.reader.dataset)
    batch_size, spec = _first_batch(feed)
    passes = ObservedPasses(trainer.model, trainer.strategy, running_lines())
    graph, drawn = _traced(step, spec, passes)
    findings = [*_findings(trainer, feed, graph, passes), *_frozen(drawn)]
    weights = trainer.model.weights
    return Inspection(
        model=trainer.model.name,
        parameters=_count(weights),
        trainable_parameters=_count(v for one in passes.variables.values() for v in one),
        groups={name: type(one.optimizer).__name__ for name, one in step.groups.items()},
        replicas=trainer.strategy.num_replicas_in_sync,
        batch_size=batch_size and batch_size * step.accumulate,
        workdir=None if trainer.workdir is None else str(trainer.workdir),
        losses=tuple(passes.losses.values()),
        variables=tuple(_variables(trainer, passes)),
        summaries=tuple(passes.summaries),
        state_updates=tuple(passes.changed_state(graph)),
        findings=tuple(dict.fromkeys(findings)),
        cost=_cost(trainer, graph, passes),
    )


def _first_batch(feed: Feed) -> tuple[int | None, Any]:
    """The examples in the first batch, if that is known, and the specs of the batch."""
    reader, iterator = feed.reader, feed.input.iterator
    if reader.batch_size is not None and _is_static(iterator.element_spec):
        return reader.batch_size, iterator.element_spec
    back = feed.snapshot()
    if back is not None:
        batch = next(iterator)
        back()
    elif _may_be_read_twice(feed):
        batch = next(reader.open())
    else:
        return reader.batch_size, iterator.element_spec
    parts = feed.reader.strategy.experimental_local_results(batch)
    specs = [tf.nest.map_structure(tf.type_spec_from_value, part) for part in parts]
    sizes = [size for spec in specs if (size := reader.layout.static_count(spec)) is not None]
    return sum(sizes) or None, tf.nest.map_structure(tf.type_spec_from_value, batch)


def _may_be_read_twice(feed: Feed) -> bool:
    """Whether a second iterator over the data changes nothing for the first one."""
    irreproducible = feed.resume_strategy.irreproducible(op_determinism=False)
    return not irreproducible and not _upstream.reshuffles(feed.reader.dataset)


def _is_static(spec: Any) -> bool:
    parts = tf.nest.flatten(spec, expand_composites=True)
    return all(one is None or one.shape.is_fully_defined() for one in parts)


def _traced(step: TrainStep, spec: Any, passes: ObservedPasses) -> tuple[Any, list[str]]:
    """Traces a step. Returns its graph, and the lines that drew random numbers in Python."""
    options = TraceOptions(recording=True, observe=passes.observe)
    program = tf.function(
        lambda batches: step(step.gathered(batches), options).row(), autograph=False
    )
    with drawn_lines() as drawn:
        graph = program.get_concrete_function((spec,) * step.accumulate).graph
    return graph, drawn


def _variables(trainer: _Trainer, passes: ObservedPasses) -> Iterator[InspectedVariable]:
    groups = trainer.train_step.groups
    owner = {id(v): name for name, one in passes.variables.items() for v in one}
    for variable in trainer.model.variables:
        group = owner.get(id(variable), "")
        yield InspectedVariable(
            path=variable.path,
            shape=tuple(variable.shape),
            dtype=str(variable.dtype),
            group=group,
            trainable=variable.trainable,
            rate_multiplier=groups[group].multiplier(variable, trainer.model) if group else 1.0,
            losses=tuple(passes.reaching.get(id(variable), ())),
        )


def _findings(
    trainer: _Trainer, feed: Feed, graph: Any, passes: ObservedPasses
) -> Iterator[Finding]:
    yield from passes.findings
    saved = [*trainer.state.variables().values(), *process_variables(trainer.strategy)]
    for one in find_unsaveable_ops(graph, saved):
        if passes.is_users(one.line):
            cure = f"{one.remedy[0].upper()}{one.remedy[1:]}."
            yield Finding("State that no checkpoint holds", one.op, one.line, cure)
    for kind, line in dynamic_shapes(graph):
        if passes.is_users(line):
            yield Finding(
                "Shape that depends on values",
                kind,
                line,
                "A TPU refuses it. Use a mask, or a fixed size.",
            )
    spec = feed.reader.element_spec
    yield from inference_only(trainer.model, spec, trainer.strategy, passes.used)
    if not _upstream.process_is_seeded():
        yield Finding(
            "Unseeded randomness",
            "initial weights, Dropout and shuffles",
            "",
            "They differ in each run. Give Trainer(seed=...), and call "
            "keras.utils.set_random_seed before the model is made.",
        )


def _frozen(lines: Sequence[str]) -> Iterator[Finding]:
    for line in lines:
        yield Finding(
            "Random numbers that are drawn once",
            "Python's random or np.random",
            line,
            "The code is traced once, so each step gets the same numbers. Use keras.random with a "
            "SeedGenerator of the layer.",
        )


def _cost(trainer: _Trainer, graph: Any, passes: ObservedPasses) -> StepCost:
    flops, unknown = floating_point_operations(graph, passes.is_first_replica)
    variables = {id(v): v for v in trainer.state.variables().values()}
    size = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables.values())
    peak = size + peak_bytes(graph, passes.is_first_replica)
    blocks = size + peak_block_bytes(graph, passes.is_first_replica)
    return StepCost(flops, size, peak, blocks, tuple(unknown))


def _count(variables: Any) -> int:
    return sum(math.prod(one.shape) for one in variables)
