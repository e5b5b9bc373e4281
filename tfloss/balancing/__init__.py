"""Balancers: weights and gradients of losses that follow from what the losses do in training.

    tfloss.Trainer(model, optimizer, loss_weights=tfloss.balancing.Uncertainty(["box", "class"]))

Fixed weights and schedules need no balancer: `loss_weights={"box": 0.5, "kl": schedule}`.
"""

from tfloss.balancing.balancer import Balancer, GradientProducts
from tfloss.balancing.gradnorm import GradNorm
from tfloss.balancing.pcgrad import PCGrad
from tfloss.balancing.uncertainty import Uncertainty

__all__ = ["Balancer", "GradNorm", "GradientProducts", "PCGrad", "Uncertainty"]
