"""Trains one net on several tasks, evaluates each and exports the last weights.

python examples/penguins/train.py --config=configs/penguins.py --workdir=runs/penguins
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from metrics import metrics_of
    from model import Penguins

    import tfloss
    from tfloss.hooks import Evaluate, SaveCheckpoint

    config = run.config
    train, test, statistics = batches(config.data_dir, config.batch_size, run.seed)

    with run.strategy.scope():
        model = Penguins(statistics, **config.model)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
        optimizer = keras.optimizers.AdamW(rate, config.weight_decay)
        metrics = metrics_of(model.tasks)
    # Reconstruction shapes the trunk early on, and then gives way.
    fade = keras.optimizers.schedules.PolynomialDecay(1.0, config.steps // 2, 0.0)
    weights = {"reconstruction": fade} if "reconstruction" in model.tasks else None

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        hooks = [Evaluate(test, metrics, every=every), *hooks]

    trainer = run.trainer(model, optimizer, loss_weights=weights)
    if run.trains:
        trainer.train(run.overfit(train), run.steps(config.steps), hooks=hooks)
    else:
        trainer.restore(test)
    if run.evaluates:
        run.report(trainer.evaluate(test, metrics))
    if run.mode == "export":
        inputs = {
            "measurements": tf.TensorSpec([None, 3]),
            "island": tf.TensorSpec([None], tf.int64),
        }
        tfloss.export(model, run.workdir / f"export_step_{trainer.step}", inputs=inputs)
    print(run.where())


if __name__ == "__main__":
    app.run(main)
