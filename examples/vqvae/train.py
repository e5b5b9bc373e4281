"""Trains an autoencoder with a bottleneck, evaluates its reconstructions and exports the best.

python examples/vqvae/train.py --config=configs/vqvae.py --workdir=runs/vqvae
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Autoencoder, Gaussian, Quantizer

    import tfloss
    from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint

    config = run.config
    train, test = batches(config.data_dir, config.batch_size, run.seed)

    with run.strategy.scope():
        kind = {"quantizer": Quantizer, "gaussian": Gaussian}[config.bottleneck]
        model = Autoencoder(kind(**config[config.bottleneck]), config.width)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
        optimizer = keras.optimizers.Adam(rate)
        error = tfloss.metric(
            keras.metrics.MeanSquaredError(),
            lambda batch, predictions: (batch["image"], predictions["reconstruction"]),
        )
    metrics = {"squared_error": error}

    def export(model, path):
        tfloss.export(model, path, inputs={"image": tf.TensorSpec([None, 28, 28, 1])})

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        best = ExportBest("val/squared_error", mode="min", export=export)
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
