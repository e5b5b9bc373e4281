"""Trains an encoder without labels, evaluates its features with a linear probe and exports it.

python examples/moco/train.py --config=configs/moco.py --workdir=runs/moco
"""

import tfloss
from tfloss import app


def main(run: app.Run) -> None:
    # Keras and TensorFlow start here, so that a typo in a flag fails before.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Moco
    from probe import LinearProbe

    config = run.config
    train, val, test = batches(config.data_dir, config.batch_size, run.seed)
    with run.strategy.scope():
        model = Moco(**config.model)
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
        {"probe": LinearProbe()},
        test_data=test,
        steps=config.steps,
        every=tfloss.Every(steps=config.eval_every),
        best="val/probe",
        export={"image": tf.TensorSpec([None, 28, 28, 1])},
    )


if __name__ == "__main__":
    app.run(main)
