"""Trains one net on several tasks, evaluates each and exports the last weights.

python examples/penguins/train.py --config=configs/penguins.py --workdir=runs/penguins
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from metrics import metrics_of
    from model import Penguins

    config = run.config
    train, val, test, statistics = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        model = Penguins(statistics, **config.model)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
        optimizer = keras.optimizers.AdamW(rate, config.weight_decay)
    # The reconstruction task shapes the trunk early on, then its weight decays to 0.
    fade = keras.optimizers.schedules.PolynomialDecay(1.0, config.steps // 2, 0.0)
    weights = {"reconstruction": fade} if "reconstruction" in model.tasks else None
    run.train_and_evaluate(
        run.trainer(model, optimizer, loss_weights=weights),
        train,
        val,
        metrics_of(model.tasks),
        test_data=test,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        export={
            "measurements": tf.TensorSpec([None, 3]),
            "island": tf.TensorSpec([None], tf.int64),
        },
    )


if __name__ == "__main__":
    app.run(main)
