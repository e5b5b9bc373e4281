"""Trains a GAN, scores its samples and exports the best generator.

python examples/gan/train.py --config=configs/gan.py --workdir=runs/gan
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
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
    run.train_and_evaluate(
        run.trainer(model, optimizer, train_step=step, ema=config.ema),
        train,
        val,
        {"frechet": Frechet(classifier(run.workdir / "scorer.keras", config.data_dir))},
        test_data=test,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        ema=True,
        best="val/frechet",
        export={"latent": tf.TensorSpec([None, config.model.latent])},
    )


if __name__ == "__main__":
    app.run(main)
