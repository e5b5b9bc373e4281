"""The options of `TrainStep`, as a type, for functions that pass them on.

def make_step(model, optimizer, **options: Unpack[StepOptions]):
    return TrainStep(model, optimizer, **options)
"""

from collections.abc import Mapping
from typing import TypedDict

from tfloss.balancing import Balancer
from tfloss.data.batch_layout import BatchLayout
from tfloss.forward.losses import Weight
from tfloss.optimizers.ema import Ema


class StepOptions(TypedDict, total=False):
    """Keyword arguments of `TrainStep.__init__`, where they are documented."""

    loss_weights: Mapping[str, Weight] | Balancer | None
    clip_norm: float | None
    accumulate: int
    precision: str | None
    ema: float | Ema | None
    skip_nonfinite: bool
    fused_adam: bool
    batch_layout: BatchLayout
