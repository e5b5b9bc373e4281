"""What methods and arguments of other libraries are called here. Host code.

A person who knows Keras, Lightning or fastai writes `trainer.fit(...)` or `max_epochs=3` first. The
error says what to write instead.
"""

import difflib
from collections.abc import Iterable

_TRAIN = "Write trainer.train(data, epochs=3), or steps=1_000."
_EVALUATE = (
    "Write trainer.evaluate(data, metrics). During training, a hook does it: "
    "hooks=[tfloss.hooks.Evaluate(data, metrics, every=Every(epochs=1))]."
)
_PREDICT = "Call the model: model(batch, training=False)."
_SAVE = (
    "Trainer(workdir=...) saves checkpoints; trainer.save_checkpoint() saves one now. "
    "tfloss.export(model, path, inputs=...) writes a SavedModel, model.save_weights(path) weights."
)
_LOAD = "Write trainer.restore(data), or tfloss.load_weights(model, path)."
_OPTIMIZER = "Give it to the optimizer: Trainer(model, keras.optimizers.Adam(1e-3))."
_LOSS = (
    "The model reports its losses. For a model without, use "
    "tfloss.adapters.supervised(model, loss), or tfloss.adapters.from_compiled(model)."
)
_STRATEGY = "Write strategy=tfloss.make_strategy('mirrored', replicas=2)."
_CALLBACKS = "Write hooks=[...]; callbacks of Keras may be in the list."
_DATA = "It belongs to the data set."

METHODS = {
    **dict.fromkeys(("fit", "fit_one_cycle", "fine_tune", "train_on_batch"), _TRAIN),
    **dict.fromkeys(("test", "validate", "validation", "test_on_batch", "score"), _EVALUATE),
    **dict.fromkeys(("predict", "predict_on_batch", "get_preds"), _PREDICT),
    **dict.fromkeys(("save", "save_model", "save_weights", "export"), _SAVE),
    **dict.fromkeys(("load", "load_weights", "load_checkpoint", "from_checkpoint"), _LOAD),
    **dict.fromkeys(("lr_find", "tune"), "Write `tfloss lr-range -- python train.py ...`."),
    "compile": f"Write Trainer(model, optimizer). {_LOSS}",
    "summary": "Write print(trainer.inspect(data)).",
    "history": "train() returns a result with its curves: result.curves, result.plot().",
    "losses": "train() returns a result with the losses of the last step: result.losses.",
    "learning_rate": "Write trainer.optimizer.learning_rate.",
    "add_callback": _CALLBACKS,
}
ARGUMENTS = {
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "n_epochs", "n_epoch"), _TRAIN),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps", "steps", "iterations"), _TRAIN),
    **dict.fromkeys(
        ("validation_data", "val_dataloaders", "val_data", "valid", "metrics"), _EVALUATE
    ),
    **dict.fromkeys(("learning_rate", "lr", "lr_max", "weight_decay", "wd"), _OPTIMIZER),
    **dict.fromkeys(("loss", "loss_fn", "loss_func", "criterion"), _LOSS),
    **dict.fromkeys(("callbacks", "cbs", "logger", "loggers"), _CALLBACKS),
    **dict.fromkeys(("devices", "accelerator", "gpus", "num_gpus", "num_nodes"), _STRATEGY),
    **dict.fromkeys(("replicas", "distribute"), _STRATEGY),
    **dict.fromkeys(("validation_split", "class_weight", "sample_weight", "num_workers"), _DATA),
    "shuffle": f"{_DATA} Arrays are shuffled in each epoch; write data.shuffle(1_000) otherwise.",
    "initial_epoch": "A run with a workdir continues where it ended.",
    "verbose": "Write default_hooks=False, or log_every=..., in Trainer(...).",
    "y": "Write train((x, y), epochs=3, batch_size=32).",
    **dict.fromkeys(("gradient_clip_val", "clipnorm", "max_grad_norm"), "Write clip_norm=1.0."),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "accumulation"),
        "Write accumulate=4.",
    ),
    **dict.fromkeys(
        ("default_root_dir", "log_dir", "logdir", "output_dir", "checkpoint_dir", "save_dir"),
        "Write workdir='runs/mine'.",
    ),
    **dict.fromkeys(("mixed_precision", "fp16", "amp"), "Write precision='mixed_bfloat16'."),
    **dict.fromkeys(("jit_compile", "xla"), "Write jit=True."),
    **dict.fromkeys(("log_every_n_steps", "logging_steps"), "Write log_every=100."),
    "resume_from_checkpoint": "A run with a workdir continues from its newest checkpoint.",
    "ckpt_path": "A run with a workdir continues from its newest checkpoint.",
    "run_eagerly": "Write tf.config.run_functions_eagerly(True).",
}
HOOKS = {
    "ModelCheckpoint": "Write SaveCheckpoint(Every(steps=1_000), keep_best=1, metric='val/loss'), "
    "or ExportBest(...) for the best model in a file.",
    **dict.fromkeys(("BackupAndRestore", "OrbaxCheckpoint"), "Write SaveCheckpoint(every)."),
    **dict.fromkeys(
        ("LearningRateScheduler", "LearningRateMonitor", "LRScheduler"),
        "Give the optimizer a schedule, keras.optimizers.Adam(schedule). Its rate is logged.",
    ),
    "TerminateOnNaN": "NaNGuard is a default hook.",
    **dict.fromkeys(
        ("ProgbarLogger", "TQDMProgressBar", "RichProgressBar"), "Progress is a default hook."
    ),
    **dict.fromkeys(("CSVLogger", "JSONLogger"), "With a workdir, MetricsFile is a default hook."),
    **dict.fromkeys(("TensorBoardLogger", "SummaryWriter"), "Write TensorBoard(...)."),
    **dict.fromkeys(("WandbLogger", "WandbCallback", "WandbMetricsLogger"), "Write WandB(...)."),
    **dict.fromkeys(("MLFlowLogger", "MlflowCallback"), "Write MLflow(...)."),
    **dict.fromkeys(("BaseFinetuning", "BackboneFinetuning"), "Write Unfreeze(...)."),
    **dict.fromkeys(
        ("SwapEMAWeights", "StochasticWeightAveraging"),
        "Write Trainer(ema=0.999), and Evaluate(..., ema=True).",
    ),
    "Timer": "Write TimeLimit(...).",
    **dict.fromkeys(("Callback", "LambdaCallback"), "Subclass Hook."),
}


def hint(name: str, known: Iterable[str], cures: dict[str, str]) -> str:
    """Returns a sentence on what to write instead of a name, or an empty text.

    Args:
      name: The name that doesn't exist.
      known: The names that do.
      cures: What names of other libraries are called here.
    """
    near = difflib.get_close_matches(name, sorted(known), n=1)
    sure = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    if name in cures and not sure:
        return f" {cures[name]}"
    return f" Did you mean {near[0]!r}?" if near else ""
