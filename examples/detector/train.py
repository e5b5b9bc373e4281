"""Trains a two-stage detector, evaluates it with COCO's metrics and exports the best weights.

python examples/detector/train.py --config=configs/detector.py --workdir=runs/detector
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import functools

    import keras
    import tensorflow as tf
    from input import batches
    from model import Detector

    from tfloss.detection.coco import CocoMetric
    from tfloss.detection.drawing import draw_predictions
    from tfloss.hooks import LogPredictions

    config = run.config
    train, val, test, names = batches(config, run.seed)
    with run.strategy.scope():
        model = Detector(len(names), **config.model)
        warmup = min(100, config.steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=config.steps - warmup,
            warmup_target=config.optimizer.learning_rate,
            warmup_steps=warmup,
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
    every = tfloss.Every(steps=config.eval_every)
    draw = functools.partial(draw_predictions, class_names=names)
    run.train_and_evaluate(
        run.trainer(model, optimizer, clip_norm=config.optimizer.clip_norm),
        train,
        val,
        {"coco": CocoMetric(names, masks=config.model.masks)},
        test_data=test,
        steps=config.steps,
        every=every,
        hooks=[LogPredictions("val/found", val, draw, every=every)],
        best="val/coco/box/AP50",
        export={"image": tf.TensorSpec([None, *test.element_spec["image"].shape[1:]])},
    )


if __name__ == "__main__":
    app.run(main)
