"""Trains a classifier of Fashion-MNIST, evaluates it and exports the best weights.

python examples/fashion/train.py --config=configs/fashion.py --workdir=runs/fashion
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Classifier, application, small_net

    import tfloss
    from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint

    config = run.config
    train, test = batches(config.data_dir, config.batch_size, run.seed)

    with run.strategy.scope():
        net = application(**config.application) if config.application else small_net(**config.net)
        model = Classifier(net, representation=config.representation)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, config.steps, warmup_target=config.optimizer.learning_rate, warmup_steps=100
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
        accuracy = tfloss.metric(
            keras.metrics.SparseCategoricalAccuracy(),
            lambda batch, predictions: (batch["label"], predictions["probabilities"]),
        )
    metrics = {"accuracy": accuracy}

    def export(model, path):
        tfloss.export(model, path, inputs={"image": tf.TensorSpec([None, 28, 28, 1], tf.uint8)})

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        best = ExportBest("val/accuracy", export=export)
        hooks = [Evaluate(test, metrics, every=every), best, *hooks]

    trainer = run.trainer(model, optimizer)
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
