"""Trains a two-stage detector, evaluates it as COCO does, and exports the best weights.

python examples/detector/train.py --config=configs/detector.py --workdir=runs/detector
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Detector

    import tfloss
    from tfloss.detection import drawing
    from tfloss.detection.coco import CocoMetric
    from tfloss.hooks import Evaluate, ExportBest, LogPredictions, SaveCheckpoint

    config = run.config
    train, test, names = batches(config, run.seed)
    with run.strategy.scope():
        model = Detector(len(names), **config.model)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, config.steps, warmup_target=config.optimizer.learning_rate, warmup_steps=100
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
    metrics = {"coco": CocoMetric(names, masks=config.model.masks)}

    def export(model, path):
        spec = tf.TensorSpec([None, *test.element_spec["image"].shape[1:]])
        tfloss.export(model, path, inputs={"image": spec})

    def draw(batch, found):
        found = [found[key][:4] for key in ("boxes", "scores", "labels", "masks") if key in found]
        return drawing.draw_boxes(
            batch["image"][:4], *found, class_names=names, score_threshold=0.3
        )

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        best = ExportBest("val/coco/box/AP50", export=export)
        show = LogPredictions("val/found", test, draw, every=every)
        hooks = [Evaluate(test, metrics, every=every), best, show, *hooks]

    trainer = run.trainer(model, optimizer, clip_norm=config.optimizer.clip_norm)
    if run.trains:
        trainer.train(run.overfit(train), run.steps(config.steps), hooks=hooks)
    else:
        trainer.restore(test)
    if run.evaluates:
        run.report(trainer.evaluate(test, metrics))
    if run.mode == "export":
        export(model, run.workdir / f"export_step_{trainer.step}")
    print(run.where())


if __name__ == "__main__":
    app.run(main)
