"""Trains an autoencoder with a bottleneck, evaluates its reconstructions and exports the best.

python examples/vqvae/train.py --config=configs/vqvae.py --workdir=runs/vqvae
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Autoencoder, Gaussian, Quantizer

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        kind = {"quantizer": Quantizer, "gaussian": Gaussian}[config.bottleneck]
        model = Autoencoder(kind(**config[config.bottleneck]), config.width)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
        optimizer = keras.optimizers.Adam(rate)
    run.train_and_evaluate(
        run.trainer(model, optimizer),
        train,
        val,
        test_data=test,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        best="val/squared_error",
        export={"image": tf.TensorSpec([None, 28, 28, 1])},
    )


if __name__ == "__main__":
    app.run(main)
