"""Compares the steps of all workers, before they run. Host code, at trace time and between calls.

The settings of a run are compared earlier (`tfloss.trainer.worker_comparison`). What the code of
the model does is known only when it is traced: its losses, its summaries and its ops.
"""

from typing import Any

from tfloss.distribute.agreement import Agreement
from tfloss.inspect.graph_fingerprint import fingerprint, line_of
from tfloss.optimizers import hyperparameters
from tfloss.step.output import StepOutput
from tfloss.step.train_step import TrainStep

_ADVICE = (
    "All workers must train the same step. Code that only one worker runs must not add losses, "
    "summaries or other ops to it."
)
_MOST = 5  # kinds of ops in a message


def compare_traces(agreement: Agreement, graph: Any, output: StepOutput) -> None:
    """Checks that a step which was just traced is the same on all workers.

    Args:
      agreement: What the workers decide together.
      graph: The graph of the step.
      output: What the step returns.

    Raises:
      WorkerError: Two workers differ. The message names losses and summaries, or ops and lines.
    """
    if agreement.workers == 1:
        return
    place = "the comparison of the traced step"
    reported = {
        "the losses": list(output.losses.values()),
        "the scalars": list(output.scalars),
        "the summaries": sorted([*(one.name for one in output.summaries), *output.dropped]),
    }
    agreement.require_equal(reported, _ADVICE, place)
    kinds = fingerprint(graph)
    every = agreement.gather(place, kinds)
    if all(one == every[0] for one in every):
        return
    differing = {
        kind for kind in set().union(*every) if len({one.get(kind, 0) for one in every}) > 1
    }
    lines = agreement.gather(place, line_of(graph, differing))
    # What has a line in the user's code says more than what follows from it.
    first = sorted(differing, key=lambda kind: (not any(kind in one for one in lines), kind))
    texts: list[str] = []
    for kind in first[:_MOST]:
        counts = ", ".join(f"{one.get(kind, 0)} on worker {i}" for i, one in enumerate(every))
        where = next((one[kind] for one in lines if kind in one), "")
        texts.append(f"{kind} occurs: {counts}{f' ({where})' if where else ''}")
    more = f"; and {len(differing) - _MOST} more" if len(differing) > _MOST else ""
    raise agreement.error(
        f"The workers differ in the ops of the step: {'; '.join(texts)}{more}. {_ADVICE}"
    )


def compare_hyperparameters(agreement: Agreement, step: TrainStep) -> None:
    """Checks that hooks have set the same hyperparameters on all workers.

    Args:
      agreement: What the workers decide together.
      step: The step.

    Raises:
      WorkerError: Two workers differ.
    """
    if agreement.workers == 1:
        return
    values: dict[str, Any] = {"what is frozen": list(step.freezing.globs)}
    for name, optimizer in step.optimizers.items():
        variables = hyperparameters.scalar_variables(optimizer)
        values[name] = {
            **hyperparameters.numbers(optimizer),
            **{key: float(one.numpy()) for key, one in variables.items()},
        }
    agreement.require_equal(
        values,
        "A hook that sets hyperparameters must set them on all workers (chief_only = False).",
        "the next steps",
    )
