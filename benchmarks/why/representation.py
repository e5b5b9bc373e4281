"""The outcome when a loss gets the wrong representation: an error, or a bad model.

    python benchmarks/why/representation.py          # about two minutes on two cores

Real digits and penguins. "Silent" means: trained to the end without an error or a warning.
"""

import itertools
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import penguins_split  # noqa: E402
import tensorflow as tf  # noqa: E402
from _examples import load  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import tfloss  # noqa: E402
from tfloss.datasets.penguins import PenguinsPalmer  # noqa: E402

STEPS = 300
OUTPUTS, LABELS = ("logits", "probabilities"), ("sparse", "one_hot")


def outcome(train: Callable[[], str]) -> str:
    """Returns the result of `train`, prefixed by its warning, or its error."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "`shuffle=True` was passed")  # about Datasets in fit
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            found = train()
        except Exception as error:  # whatever is raised is what is looked for
            first = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
            return f"error: `{type(error).__name__}: {first}.`"
    return "warned: " * bool(caught) + found


def digits() -> tuple[tf.data.Dataset, dict[str, np.ndarray]]:
    """Makes endless batches of 32, and the last 360 digits."""
    data = load_digits()
    image, label = (data.images / 16.0).astype(np.float32)[..., None], data.target
    train = tf.data.Dataset.from_tensor_slices({"image": image[:-360], "label": label[:-360]})
    options = tf.data.Options()
    options.autotune.enabled = False
    train = train.shuffle(2_000, seed=0).repeat().batch(32).with_options(options)
    return train, {"image": image[-360:], "label": label[-360:]}


def net(outputs: str) -> keras.Model:
    """Makes the same small net, with logits or probabilities as output."""
    last = {"logits": "linear", "probabilities": "softmax"}[outputs]
    return keras.Sequential(
        [
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation=last),
        ]
    )


def pairings(whole: bool) -> dict[tuple[str, str, str, str], str]:
    """Trains all pairings of output, labels and loss; returns the accuracy or error of each."""
    found = {}
    for key in itertools.product(OUTPUTS, LABELS, OUTPUTS, LABELS):
        found[key] = outcome(lambda key=key: (_inside if whole else _fit)(*key))
    return found


def _keras_loss(loss_output: str, loss_labels: str) -> keras.losses.Loss:
    kinds = {
        "sparse": keras.losses.SparseCategoricalCrossentropy,
        "one_hot": keras.losses.CategoricalCrossentropy,
    }
    return kinds[loss_labels](from_logits=loss_output == "logits")


def _fit(output, labels, loss_output, loss_labels) -> str:
    """Trains a model whose loss is given to `compile`."""
    data, test = digits()
    data = data.map(lambda b: (b["image"], as_labels(b["label"], labels)))
    model = net(output)
    model.compile(keras.optimizers.Adam(1e-3), loss=_keras_loss(loss_output, loss_labels))
    model.fit(data, steps_per_epoch=STEPS, verbose=0)
    return accuracy(model.predict(test["image"], verbose=0), test)


def _inside(output, labels, loss_output, loss_labels) -> str:
    """Trains the same with the loss inside of the forward pass, in tfloss."""
    data, test = digits()
    inner, loss = net(output), _keras_loss(loss_output, loss_labels)

    class Inside(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def call(self, batch, training=False):
            guess = self.inner(batch["image"])
            return loss(as_labels(batch["label"], labels), guess) if training else guess

    tfloss.Trainer(Inside(), keras.optimizers.Adam(1e-3)).train(data, STEPS)
    return accuracy(inner.predict(test["image"], verbose=0), test)


def as_labels(label, labels: str):
    """Converts labels to integers or one-hot vectors."""
    return tf.one_hot(label, 10) if labels == "one_hot" else label


def accuracy(guess, test) -> str:
    """Formats the accuracy in percent."""
    return f"{np.mean(np.asarray(guess).argmax(-1) == test['label']):.1%}"


def one_flag(representation: str) -> str:
    """Trains the classifier of examples/fashion, which chooses the form of its labels."""
    data, test = digits()
    small = keras.Sequential(
        [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten()]
    )
    data = data.map(lambda b: {**b, "image": b["image"] * 255.0})
    model = load("fashion/model.py").Classifier(small, representation=representation)
    trainer = tfloss.Trainer(model, keras.optimizers.Adam(1e-3))
    trainer.train(data, STEPS)
    return accuracy(model({"image": test["image"] * 255.0})["probabilities"], test)


def penguins() -> tuple[tf.data.Dataset, dict, dict]:
    """Makes endless batches of 32, the test penguins in one batch, and the statistics."""
    with tempfile.TemporaryDirectory() as folder:
        builder = PenguinsPalmer(data_dir=folder)
        builder.download_and_prepare()
        train, test = (
            {k: np.stack([one[k] for one in split.as_numpy_iterator()]) for k in split.element_spec}
            for split in builder.as_dataset(split=["train", "test"])
        )
    statistics = {}
    for name in ("measurements", "mass", "isotopes"):
        values = train[name].reshape(len(train[name]), -1)
        statistics[name] = np.nanmean(values, 0).tolist(), np.nanstd(values, 0).tolist()
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(300, seed=0).repeat().batch(32)
    return data.with_options(options), test, statistics


def mass_split(break_it: Callable | None = None, losses: dict | None = None) -> str:
    """Trains the split form; returns the error of the mass in g. `break_it` changes (x, y)."""
    data, test, statistics = penguins()
    model = penguins_split.SplitPenguins(statistics, tasks=("species", "mass"))
    model.compile(keras.optimizers.AdamW(3e-3), loss=losses or penguins_split.losses(model.tasks))
    data = data.map(lambda batch: penguins_split.targets(model, batch))
    model.fit(data.map(break_it) if break_it else data, steps_per_epoch=STEPS * 3, verbose=0)
    x = {name: tf.constant(test[name]) for name in ("measurements", "island")}
    return _mass_error(model.predictions(model(x))["mass"], test)


def mass_whole(**changed: Callable) -> str:
    """Trains with tfloss; returns the error in g. `changed` replaces methods of the model."""
    data, test, statistics = penguins()
    kind = type("Changed", (load("penguins/model.py").Penguins,), changed)
    model = kind(statistics, tasks=("species", "mass"))
    tfloss.Trainer(model, keras.optimizers.AdamW(3e-3)).train(data, STEPS * 3)
    x = {name: tf.constant(test[name]) for name in ("measurements", "island")}
    return _mass_error(model(x)["mass"], test)


def _mass_error(guess, test) -> str:
    return f"{np.nanmean(np.abs(np.ravel(guess) - np.ravel(test['mass']))):.0f} g"


def _grams(x, y):
    """Leaves the targets in g, although the model's output is standardised."""
    return x, {**y, "mass": y["mass"] * 800.0 + 4200.0}


def _swapped(x, y):
    return x, {"species": y["mass"], "mass": tf.cast(y["species"], tf.float32)}


def _predictions(self, batch, training=False):
    """Runs the inference forward in training, too."""
    return super(type(self), self).call(batch, training=False)


def _no_units(self, name, values):
    """Forgets to standardise the mass."""
    mean, deviation = self.statistics[name]
    return values if name == "mass" else (values - mean) / deviation


def summed(found: dict[tuple[str, str, str, str], str]) -> str:
    """Summarises the outcomes of the wrong pairings."""
    wrong = {k: v for k, v in found.items() if k[:2] != (k[2], k[3])}
    kinds = {"errors": [], "warned": [], "silent": []}
    for text in wrong.values():
        kind = text.partition(":")[0]
        kinds[{"error": "errors", "warned": "warned"}.get(kind, "silent")].append(text.split()[-1])
    parts = [f"{len(kinds['errors'])} errors"]
    for kind in ("warned", "silent"):
        if values := sorted(kinds[kind], key=lambda v: float(v.rstrip("%"))):
            parts.append(f"**{len(values)} {kind}** ({', '.join(values)})")
    return ", ".join(parts)


def table() -> str:
    """Formats the table in Markdown."""
    found = pairings(whole=False)
    rights = ", ".join(sorted(v for k, v in found.items() if k[:2] == (k[2], k[3])))
    rows = [
        "| mistake | model + losses in `fit` | one forward in tfloss |",
        "| --- | --- | --- |",
        f"| none: digits | {rights} (the 4 right pairings of output, labels and loss) |"
        f" {one_flag('sparse')}, {one_flag('one_hot')} (both of `representation=`) |",
        f"| a wrong pairing, chosen by settings: 12 of 16 | {summed(found)} |"
        f" no such setting; {outcome(lambda: one_flag('probabilities'))} |",
        f"| the same 12, written into the forward by hand | | {summed(pairings(whole=True))} |",
        f"| none: penguins' mass | {outcome(mass_split)} | {outcome(mass_whole)} |",
        f"| the loss gets predictions | {outcome(lambda: mass_split(*_decoded()))} |"
        f" {outcome(lambda: mass_whole(call=_predictions))} |",
        f"| two targets exchanged | {outcome(lambda: mass_split(_swapped))} |"
        " labels have names; there is no order |",
        f"| the target in other units | {outcome(lambda: mass_split(_grams))} |"
        f" {outcome(lambda: mass_whole(standard=_no_units))} |",
    ]
    return "\n".join(rows)


def _decoded():
    """Losses that take predictions for what the loss wants: probabilities as logits."""
    inner = penguins_split.losses(("species", "mass"))

    def species(label, logits):
        return inner["species"](label, tf.nn.softmax(logits))

    def mass(target, guess):
        return inner["mass"](target, guess * 800.0 + 4200.0)

    return None, {"species": species, "mass": mass}


if __name__ == "__main__":
    print(table())
