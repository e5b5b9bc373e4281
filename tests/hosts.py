"""A training script that tests run in one process, or in several workers.

    python tests/hosts.py OUT '{"steps": 20, ...}'

Each worker writes the result of `run` to OUT/worker_<index>.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def run(out: Path, options: dict) -> dict:
    """Trains a small model.

    Args:
      out: The folder for the files of the test.
      options: Values that replace the defaults below.

    Returns:
      The results that a test checks, JSON-able.
    """
    defaults = {
        "strategy": "multi_worker",
        "steps": 20,
        "batch": 16,
        "examples": 80,
        "workdir": None,
        "seed": 3,
        "per_call": None,
        "save_every": None,
        "input_fn": False,
        "evaluate": False,
        "sleep": 0.0,  # seconds per step
        "kill": None,  # [worker, step, signal]: the worker kills itself there, once
        "nan_at": None,
        "stop": None,  # [worker, step]: the worker requests the end of training
        "save_seconds": None,  # seconds between checkpoints
        "repeat": True,
        "shuffle": None,  # "own": each worker reads the data in its own order
        "dropout": 0.0,
        "own_workdirs": None,  # one for each worker
        "slow_save": 0.0,  # seconds that a write takes longer
        "watch": None,  # steps between two watched ones
    }
    unknown = set(options) - set(defaults)
    assert not unknown, unknown
    o = defaults | options

    import keras
    import numpy as np
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy

    import tfloss
    from tests.equivalence.worker import two_replicas
    from tfloss.checkpoint import CheckpointDirectory
    from tfloss.distribute.strategy import worker_position
    from tfloss.hooks import Evaluate, Hook, SaveCheckpoint

    if o["strategy"] == "multi_worker":
        extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
        extended._initialize_local_devices = two_replicas
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    strategy = tfloss.make_strategy(o["strategy"])
    if o["seed"] is not None:
        keras.utils.set_random_seed(o["seed"])
    me = worker_position(strategy)[0]
    if o["slow_save"]:
        write = CheckpointDirectory.write

        def write_slowly(*arguments, **options):
            time.sleep(o["slow_save"])
            return write(*arguments, **options)

        CheckpointDirectory.write = write_slowly

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(6, activation="tanh")
            self.norm = keras.layers.BatchNormalization(synchronized=True, momentum=0.5)
            self.dropout = keras.layers.Dropout(o["dropout"])
            self.out = keras.layers.Dense(2)

        def call(self, batch, training=False):
            y = self.out(
                self.dropout(
                    self.norm(self.hidden(batch["x"]), training=training), training=training
                )
            )
            if not training:
                return {"y": y, "small": tf.cast(y[:, 0] > 0, tf.uint8)}
            error = tf.reduce_sum((y - batch["y"]) ** 2, 1)
            return {
                "mean": tf.reduce_mean(error),
                "masked": tfloss.global_mean(error, batch["mask"]),
            }

    random = np.random.default_rng(0)
    x = random.normal(size=(o["examples"], 4)).astype("float32")
    data = {
        "x": x,
        "y": np.stack([x.sum(1), x[:, 0] ** 2], 1),
        "mask": (np.arange(o["examples"]) % 7 < 3).astype("float32"),
    }
    if o["nan_at"] is not None:  # the last example of this step's batch
        data["x"][o["nan_at"] * o["batch"] - 1] = np.nan
    examples = tf.data.Dataset.from_tensor_slices(data)
    if o["shuffle"] is not None:
        examples = examples.shuffle(100, seed=me if o["shuffle"] == "own" else None)

    def repeated(dataset):
        return dataset.repeat() if o["repeat"] else dataset

    def input_fn(context):
        many, mine = context.num_input_pipelines, context.input_pipeline_id
        # The workers take their parts of each global batch in order.
        size = context.get_per_replica_batch_size(o["batch"]) * (
            context.num_replicas_in_sync // many
        )
        return repeated(examples.batch(size, drop_remainder=True).shard(many, mine))

    class Watch(Hook):
        every = tfloss.Every(steps=1)

        def after_step(self, step):
            time.sleep(o["sleep"])
            print(f"worker {me} step {step}", flush=True)
            done = out / "killed"
            if o["kill"] and o["kill"][:2] == [me, step] and not done.exists():
                done.touch()
                os.kill(os.getpid(), o["kill"][2])
            if o["stop"] == [me, step]:
                self.trainer.stop("enough")

    with strategy.scope():
        model = Net()
        optimizer = keras.optimizers.SGD(0.02, momentum=0.5)
        within = keras.metrics.MeanSquaredError()
    metrics = {
        "mse": tfloss.metric(keras.metrics.MeanSquaredError(), lambda b, p: (b["y"], p["y"])),
        "within": tfloss.metric(within, lambda b, p: (b["y"], p["y"])),
    }
    hooks = []
    if o["sleep"] or o["kill"] or o["stop"]:
        hooks.append(Watch())
    if o["evaluate"]:
        hooks.append(
            Evaluate(examples.batch(7), metrics, every=tfloss.Every(steps=10), losses=True)
        )
    if o["watch"]:
        hooks.append(tfloss.hooks.Watch(tfloss.Every(steps=o["watch"])))
    if o["save_every"]:
        hooks.append(SaveCheckpoint(tfloss.Every(steps=o["save_every"])))
    if o["save_seconds"]:
        hooks.append(SaveCheckpoint(tfloss.Every(seconds=o["save_seconds"]), keep_last=None))
    trainer = tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        workdir=(o["own_workdirs"] or [o["workdir"]] * 2)[me],
        seed=o["seed"],
        steps_per_call=o["per_call"] or "auto",
        log_every=5,
    )
    if o["input_fn"]:
        feed = input_fn
    else:
        feed = repeated(examples.batch(o["batch"], drop_remainder=o["repeat"]))
    result = trainer.train(feed, o["steps"], hooks=hooks)
    found = {
        "worker": me,
        "replicas": strategy.num_replicas_in_sync,
        "step": result.step,
        "losses": result.losses,
        "reason": result.reason,
        "weights": {v.path: np.asarray(v.numpy()).tolist() for v in model.weights},
        "batch_size": trainer.run.batch_size,
    }
    if o["watch"]:
        table = next(one.table for one in hooks if isinstance(one, tfloss.hooks.Watch))
        found |= {"watched": table.scalars(), "counts": table.watched[0].counts.tolist()}
    if o["evaluate"]:
        found["results"] = trainer.evaluate(examples.batch(7), metrics, losses=True)
    return found


def main() -> None:
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = run(out, options)
    (out / f"worker_{found['worker']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT
    main()
