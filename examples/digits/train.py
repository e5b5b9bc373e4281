"""Trains a small conv net on handwritten digits, evaluates it and exports the best weights.

python examples/digits/train.py --config=configs/digits.py --workdir=runs/digits
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Classifier

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        model = Classifier(**config.model)
        warmup = min(50, config.steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=config.steps - warmup,
            warmup_target=config.optimizer.learning_rate,
            warmup_steps=warmup,
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)
    run.train_and_evaluate(
        run.trainer(model, optimizer),
        train,
        val,
        test_data=test,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        losses=True,
        best="val/accuracy",
        export={"image": tf.TensorSpec([None, 8, 8, 1])},
    )


if __name__ == "__main__":
    app.run(main)
