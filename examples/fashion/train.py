"""Trains a classifier of Fashion-MNIST, evaluates it and exports the best weights.

python examples/fashion/train.py --config=configs/fashion.py --workdir=runs/fashion
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Classifier, application, small_net

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        net = application(**config.application) if config.application else small_net(**config.net)
        model = Classifier(net, representation=config.representation)
        warmup = min(100, config.steps // 10)
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
        best="val/accuracy",
        export={"image": tf.TensorSpec([None, 28, 28, 1], tf.uint8)},
    )


if __name__ == "__main__":
    app.run(main)
