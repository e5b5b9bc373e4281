"""Training scripts: flags, config, strategy and seed of a command line. Host code.

    import tfloss
    from tfloss import app

    def main(run: app.Run) -> None:
        import keras          # starts TensorFlow, so it comes after the flags are checked
        ...
        trainer = run.trainer(model, optimizer)
        run.train_and_evaluate(trainer, train_data, eval_data, metrics, steps=1_000, every=every)

    if __name__ == "__main__":
        app.run(main)

    python train.py --config=config.py --config.optimizer.learning_rate=3e-4 --workdir=runs/a

A wrong flag or config key ends the program before TensorFlow starts: exit code 2, and a message
with the nearest valid name.
"""

from tfloss.app.entry_point import prepare, run
from tfloss.app.training_run import Run

__all__ = ["Run", "prepare", "run"]
