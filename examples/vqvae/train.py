"""Trains an autoencoder with a bottleneck, evaluates its reconstructions and exports the best.

python examples/vqvae/train.py --config=configs/vqvae.py --workdir=runs/vqvae
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
    from model import Autoencoder, Gaussian, Quantizer

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        kind = {"quantizer": Quantizer, "gaussian": Gaussian}[config.bottleneck]
        model = Autoencoder(kind(**config[config.bottleneck]), config.width)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
        optimizer = keras.optimizers.Adam(rate)
        error = tfloss.metric(
            keras.metrics.MeanSquaredError(),
            lambda batch, predictions: (batch["image"], predictions["reconstruction"]),
        )

    def export(model: keras.Model, path: Path) -> None:
        tfloss.export(model, path, inputs={"image": tf.TensorSpec([None, 28, 28, 1])})

    run.train_and_evaluate(
        run.trainer(model, optimizer),
        train,
        val,
        {"squared_error": error},
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        best="val/squared_error",
        best_mode="min",
        export=export,
        test_data=test,
    )


if __name__ == "__main__":
    app.run(main)
