"""Trains a GAN, scores what it draws and exports the best generator.

python examples/gan/train.py --config=configs/gan.py --workdir=runs/gan
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import AlternatingStep, Gan
    from score import Frechet, classifier

    import tfloss
    from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint

    config = run.config
    train, test = batches(config.data_dir, config.batch_size, config.model.latent, run.seed)
    with run.strategy.scope():
        model = Gan(**config.model)
        adam = {"beta_1": 0.0, "beta_2": 0.99}
        optimizer = {
            "generator": (keras.optimizers.Adam(config.rate, **adam), model.generator),
            "discriminator": (keras.optimizers.Adam(config.rate, **adam), model.discriminator),
        }

    metrics = {"frechet": Frechet(classifier(run.workdir / "scorer.keras", config.data_dir))}

    def export(model, path):
        latent = tf.TensorSpec([None, config.model.latent])
        tfloss.export(model, path, inputs={"latent": latent})

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        best = ExportBest("val/frechet", mode="min", export=export, ema=True)
        hooks = [Evaluate(test, metrics, every=every, ema=True), best, *hooks]

    step = AlternatingStep if config.alternating else tfloss.TrainStep
    trainer = run.trainer(model, optimizer, train_step=step, ema=config.ema)
    if run.trains:
        trainer.train(run.overfit(train), run.steps(config.steps), hooks=hooks)
    else:
        trainer.restore(test)
    if run.evaluates:
        run.report(trainer.evaluate(test, metrics, ema=True))
    if run.mode == "export":
        with trainer.averaged():
            export(model, run.workdir / f"export_step_{trainer.step}")
    print(run.where())


if __name__ == "__main__":
    app.run(main)
