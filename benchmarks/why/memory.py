"""Peak memory of one training step, or of one pass for the validation loss, in both forms.

python benchmarks/why/memory.py          # about eight minutes on two cores

Each figure is the most that TensorFlow's allocator held during a step beyond what it held before,
the median of 5 processes. On one thread, so that in graph mode the order of ops is not chance.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

MODELS = {
    "detector": "Two-stage detector, 16 pictures of 256x256",
    "penguins": "Five tasks, 64,000 penguins",
    "dense": "Eight tasks of each pixel, 16 pictures of 128x128",
}
FORMS = ("one forward", "model + losses")
MODES = ("eager training", "eager validation loss", "graph training")
REPEAT = 5


def peak(step) -> int:
    """Measures the peak memory of a warm step in bytes, beyond what was allocated before."""
    import tensorflow as tf

    for _ in range(3):
        step()
    gc.collect()
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    step()
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def one(model_name: str, form: str, mode: str) -> int:
    """Measures the peak of one kind in this process."""
    import _models
    import detector_split
    import keras
    import penguins_split
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    whole = form == "one forward"
    if model_name == "detector":
        model, batch = _models.detector(whole, 256), _models.detector_batch(256)
    elif model_name == "penguins":
        model = _models.penguins(whole)
        batch = {k: tf.repeat(v, 2_000, 0) for k, v in _models.penguins_batch().items()}
    else:
        model, batch = _models.Dense(whole), _models.dense_batch()
    model.compile(keras.optimizers.SGD(0.0))
    if whole:

        def total():
            return tf.add_n(tf.nest.flatten(model(batch, training=True)))
    else:
        if model_name == "detector":
            x, y = detector_split.targets(batch, masks=True)
            functions = detector_split.losses(masks=True)
        elif model_name == "penguins":
            x, y = penguins_split.targets(model, batch)
            functions = penguins_split.losses(model.tasks)
        else:
            names = [f"task_{i}" for i in range(8)]
            x, y = batch, dict.fromkeys(names, batch["label"])
            functions = dict.fromkeys(names, _models.pixel_loss)

        def total():
            out = model(x, training=True)  # alive until all losses are made, as in `fit`
            return tf.add_n([functions[name](y[name], out[name]) for name in functions])

    def train():
        with tf.GradientTape() as tape:
            loss = total()
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    steps = {
        "eager training": train,
        "eager validation loss": total,
        "graph training": tf.function(train),
    }
    return peak(steps[mode])


def measured(model_name: str, form: str, mode: str) -> int:
    """Measures the same in a new process."""
    command = [sys.executable, __file__, "--one", model_name, form, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def table() -> str:
    """Formats the table in Markdown: MB, and how much more the split form needs."""
    rows = ["| | | one forward | model + losses | difference |", "| --- | --- | --: | --: | --: |"]
    for model_name, title in MODELS.items():
        for mode in MODES:
            found = {form: [] for form in FORMS}
            for _ in range(REPEAT):
                for form in FORMS:
                    found[form].append(measured(model_name, form, mode) / 1e6)
            whole, split = (statistics.median(found[form]) for form in FORMS)
            spread = max(max(v) / min(v) - 1 for v in found.values())
            rows.append(
                f"| {title} | {mode} | {whole:.0f} MB | {split:.0f} MB |"
                f" {split / whole - 1:+.1%} (processes differ by {spread:.1%}) |"
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "FORM", "MODE"))
    flags = parser.parse_args()
    print(one(*flags.one) if flags.one else table())
