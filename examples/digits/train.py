"""Trains a small conv net on handwritten digits, evaluates it and exports the best weights.

python examples/digits/train.py --config=configs/digits.py --workdir=runs/digits
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Classifier

    import tfloss
    from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint

    config = run.config
    train, test = batches(config.data_dir, config.batch_size, run.seed)

    with run.strategy.scope():
        model = Classifier(**config.model)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, config.steps, warmup_target=config.optimizer.learning_rate, warmup_steps=50
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
        accuracy = tfloss.metric(
            keras.metrics.SparseCategoricalAccuracy(),
            lambda batch, predictions: (batch["label"], predictions["probabilities"]),
        )
    metrics = {"accuracy": accuracy}

    def export(model, path):
        tfloss.export(model, path, inputs={"image": tf.TensorSpec([None, 8, 8, 1])})

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        evaluate = Evaluate(test, metrics, every=every, losses=True)
        hooks = [evaluate, ExportBest("val/accuracy", export=export), *hooks]

    trainer = run.trainer(model, optimizer)
    if run.trains:
        trainer.train(run.overfit(train), run.steps(config.steps), hooks=hooks)
    else:
        trainer.restore(test)
    if run.evaluates:
        run.report(trainer.evaluate(test, metrics, losses=True))
    if run.mode == "export":
        export(model, run.workdir / f"export_step_{trainer.step}")
    print(run.where())


if __name__ == "__main__":
    app.run(main)
