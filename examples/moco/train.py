"""Trains an encoder without labels, probes its features and exports it.

python examples/moco/train.py --config=configs/moco.py --workdir=runs/moco
"""

from tfloss import app


def main(run: app.Run) -> None:
    # Imported here, so that a typo in a flag fails at once, before TensorFlow starts.
    import keras
    import tensorflow as tf
    from input import batches
    from model import Moco
    from probe import LinearProbe

    import tfloss
    from tfloss.hooks import Evaluate, ExportBest, SaveCheckpoint

    config = run.config
    train, probe = batches(config.data_dir, config.batch_size, run.seed)
    metrics = {"probe": LinearProbe()}

    with run.strategy.scope():
        model = Moco(**config.model)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, config.steps, warmup_target=config.optimizer.learning_rate, warmup_steps=100
        )
        optimizer = keras.optimizers.AdamW(rate, config.optimizer.weight_decay)

    def export(model, path):
        tfloss.export(model, path, inputs={"image": tf.TensorSpec([None, 28, 28, 1])})

    every = tfloss.Every(steps=config.eval_every)
    hooks = [SaveCheckpoint(every), *run.hooks()]
    if run.evaluates:
        best = ExportBest("val/probe", export=export)
        hooks = [Evaluate(probe, metrics, every=every), best, *hooks]

    trainer = run.trainer(model, optimizer)
    if run.trains:
        trainer.train(run.overfit(train), run.steps(config.steps), hooks=hooks)
    else:
        trainer.restore(train)
    if run.evaluates:
        run.report(trainer.evaluate(probe, metrics))
    if run.mode == "export":
        export(model, run.workdir / f"export_step_{trainer.step}")
    print(run.where())


if __name__ == "__main__":
    app.run(main)
