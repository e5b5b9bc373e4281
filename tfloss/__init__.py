"""tfloss trains TensorFlow / Keras models which own their losses.

    trainer = tfloss.Trainer(model, keras.optimizers.Adam(1e-3), workdir="runs/digits")
    result = trainer.train(dataset, steps=2_000)

`model(batch, training=True)` reports losses, `model(batch, training=False)` returns
predictions. The trainer knows names and scalars, and nothing else of either.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfloss import adapters, app, balancing, data, errors, hooks, replay, summary
    from tfloss.app.quiet import quiet
    from tfloss.checkpoint.load_weights import load_weights
    from tfloss.distribute.strategy import make_strategy
    from tfloss.evaluation.metrics import metric
    from tfloss.forward.context import current_step
    from tfloss.forward.global_batch import cross_replica_concat, global_mean, global_sum
    from tfloss.forward.losses import add_loss
    from tfloss.hooks import Every, Hook
    from tfloss.optimizers.ema import Ema
    from tfloss.optimizers.groups import Group
    from tfloss.saved_model.export import export
    from tfloss.step.trace_options import TraceOptions
    from tfloss.step.train_step import TrainStep
    from tfloss.trainer.result import TrainResult
    from tfloss.trainer.trainer import Trainer
    from tfloss.version import __version__

# Imported when first used, so that a script can parse its flags, and quieten TensorFlow,
# before TensorFlow starts.
_WHERE = {
    "Ema": "optimizers.ema",
    "Every": "hooks",
    "Group": "optimizers.groups",
    "Hook": "hooks",
    "TraceOptions": "step.trace_options",
    "TrainResult": "trainer.result",
    "TrainStep": "step.train_step",
    "Trainer": "trainer.trainer",
    "__version__": "version",
    "add_loss": "forward.losses",
    "cross_replica_concat": "forward.global_batch",
    "current_step": "forward.context",
    "export": "saved_model.export",
    "global_mean": "forward.global_batch",
    "global_sum": "forward.global_batch",
    "load_weights": "checkpoint.load_weights",
    "make_strategy": "distribute.strategy",
    "metric": "evaluation.metrics",
    "quiet": "app.quiet",
}
_MODULES = ("adapters", "app", "balancing", "data", "errors", "hooks", "replay", "summary")

__all__ = [
    "Ema",
    "Every",
    "Group",
    "Hook",
    "TraceOptions",
    "TrainResult",
    "TrainStep",
    "Trainer",
    "__version__",
    "adapters",
    "add_loss",
    "app",
    "balancing",
    "cross_replica_concat",
    "current_step",
    "data",
    "errors",
    "export",
    "global_mean",
    "global_sum",
    "hooks",
    "load_weights",
    "make_strategy",
    "metric",
    "quiet",
    "replay",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"tfloss.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"tfloss.{name}")
    else:
        raise AttributeError(f"module 'tfloss' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
