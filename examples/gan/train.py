"""Trains a GAN, scores its samples and exports the best generator.

python examples/gan/train.py --config=configs/gan.py --workdir=runs/gan
"""

from pathlib import Path

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    """Trains, evaluates or exports, as `--mode` says."""
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import AlternatingStep, Gan
    from score import Frechet, classifier

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, config.model.latent, run.seed)
    with run.strategy.scope():
        model = Gan(**config.model)
        adam = {"beta_1": 0.0, "beta_2": 0.99}
        optimizer = {
            "generator": (keras.optimizers.Adam(config.rate, **adam), model.generator),
            "discriminator": (keras.optimizers.Adam(config.rate, **adam), model.discriminator),
        }
    step = AlternatingStep if config.alternating else tfloss.TrainStep
    metrics = {"frechet": Frechet(classifier(run.workdir / "scorer.keras", config.data_dir))}

    def export(model: keras.Model, path: Path) -> None:
        tfloss.export(model, path, inputs={"latent": tf.TensorSpec([None, config.model.latent])})

    run.train_and_evaluate(
        run.trainer(model, optimizer, train_step=step, ema=config.ema),
        train,
        val,
        metrics,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        ema=True,
        best="val/frechet",
        best_mode="min",
        export=export,
        test_data=test,
    )


if __name__ == "__main__":
    app.run(main)
