"""Trains a two-stage detector, evaluates it with COCO's metrics and exports the best weights.

python examples/detector/train.py --config=configs/detector.py --workdir=runs/detector
"""

from pathlib import Path
from typing import Any

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    """Trains, evaluates or exports, as `--mode` says."""
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Detector

    from tfloss.detection import drawing
    from tfloss.detection.coco import CocoMetric
    from tfloss.hooks import LogPredictions

    config = run.config
    train, val, test, names = batches(config, run.seed)
    with run.strategy.scope():
        model = Detector(len(names), **config.model)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, config.steps, warmup_target=config.optimizer.learning_rate, warmup_steps=100
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
    every = tfloss.Every(steps=config.eval_every)

    def export(model: keras.Model, path: Path) -> None:
        spec = tf.TensorSpec([None, *test.element_spec["image"].shape[1:]])
        tfloss.export(model, path, inputs={"image": spec})

    def draw(batch: dict[str, Any], found: dict[str, Any]) -> Any:
        shown = [found[key][:4] for key in ("boxes", "scores", "labels", "masks") if key in found]
        return drawing.draw_boxes(
            batch["image"][:4], *shown, class_names=names, score_threshold=0.3
        )

    run.train_and_evaluate(
        run.trainer(model, optimizer, clip_norm=config.optimizer.clip_norm),
        train,
        val,
        {"coco": CocoMetric(names, masks=config.model.masks)},
        steps=config.steps,
        every=every,
        best="val/coco/box/AP50",
        export=export,
        test_data=test,
        hooks=[LogPredictions("val/found", val, draw, every=every)] if run.evaluates else [],
    )


if __name__ == "__main__":
    app.run(main)
