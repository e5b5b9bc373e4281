"""Typical mistakes of a new user: what was written, and what the answer must contain.

Each script starts with `START`. The line at fault ends with `# here`.
"""

import dataclasses

START = """
import keras
import numpy as np
import tensorflow as tf
import tfloss

x = np.linspace(0, 1, 256, dtype="float32").reshape(64, 4)
y = np.arange(64) % 3
examples = tf.data.Dataset.from_tensor_slices({"x": x, "y": y})
data = examples.batch(8).repeat()


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, batch, training=False):
        logits = self.dense(batch["x"])
        if not training:
            return logits
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss(batch["y"], logits)


def make_trainer(model=None, **options):
    optimizer = keras.optimizers.Adam(1e-3)
    return tfloss.Trainer(model or Net(), optimizer, default_hooks=False, **options)


"""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A script and the texts that its error must contain.

    Attributes:
      wrote: The end of the script.
      says: Texts: what is at fault and what to do.
    """

    wrote: str
    says: tuple[str, ...]


def _forward(body: str) -> str:
    """A script whose training forward has this body."""
    lines = "".join(f"        {line}\n" for line in body.strip().splitlines())
    call = f"class Model(Net):\n    def call(self, batch, training=False):\n{lines}"
    return f"{call}\n\nmake_trainer(Model()).train(data, 3)\n"


_TO_STRINGS = _forward(
    """
words = tf.strings.as_string(batch["x"])  # here
return tf.reduce_mean(self.dense(tf.strings.to_number(words)))
"""
)

MISTAKES = {
    "an op that XLA lacks, step by step": Mistake(
        _TO_STRINGS.replace("Model())", "Model(), jit=True)"),
        ("AsString (train.py:", "in call)", "input pipeline", "jit=False"),
    ),
    "an op that XLA lacks, in a loop": Mistake(
        _TO_STRINGS.replace("Model())", 'Model(), jit="loop")'),
        ("AsString (train.py:", "in call)", "input pipeline", "jit=False"),
    ),
    "numpy_function without a shape": Mistake(
        """
def noisy(batch):
    x = tf.numpy_function(lambda x: x + 1, [batch["x"]], tf.float32)
    return {"x": x, "y": batch["y"]}


make_trainer().train(data.map(noisy), 3)  # here
""",
        ("batch['x'] has no static rank", "numpy_function", "set_shape"),
    ),
    "a table with several types in a Source": Mistake(
        """
class DataFrame:  # what pandas gives
    columns = ["age", "city"]
    dtypes = {"age": "float64", "city": "object"}

    def to_numpy(self):
        return np.array([[1.0, "a"], [2.0, "b"]], dtype=object)

    def __getitem__(self, name):
        return self.to_numpy()[:, self.columns.index(name)]

    __array__ = lambda self, *_, **__: self.to_numpy()


tfloss.data.Source((DataFrame(), y), batch_size=8)  # here
""",
        ("examples[0]", "'city' is object", "df['age'].to_numpy()"),
    ),
    "arrays without a batch size": Mistake(
        "make_trainer().train((x, y), 3)  # here", ("got tuple", "batch_size=32")
    ),
    "a batch size beside batches": Mistake(
        "make_trainer().train(data, 3, batch_size=8)  # here",
        ("batch_size=... is for arrays", "has batches already"),
    ),
    "arrays of different lengths": Mistake(
        'make_trainer().train({"x": x, "y": y[:9]}, 3, batch_size=8)  # here',
        ("different first dimensions", "['y'] 9"),
    ),
    "arrays as data and steps": Mistake(
        "make_trainer().train(x, y)  # here", ("steps must be a whole number", "shape (64,)")
    ),
    "an export of inputs without one that the model reads": Mistake(
        'tfloss.export(Net(), "never", inputs={"z": tf.TensorSpec([None, 4])})  # here',
        ("asked for key 'x'", "'serving_default' (z)", "train.py:19", "add it to the inputs"),
    ),
    "an error of the model in an export": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        return self.dense(batch["x"]) @ tf.ones([2, 2])  # here


tfloss.export(Model(), "never", inputs={"x": tf.TensorSpec([None, 4])})
""",
        ("ValueError: Dimensions must be equal, but are 3 and 2",),
    ),
    "a drawing of nothing": Mistake(
        _forward(
            """
tfloss.summary.draw("boxes", lambda image: image)  # here
return tf.reduce_mean(self.dense(batch["x"]))
"""
        ),
        ("Drawing 'boxes' has no tensors to draw",),
    ),
    "an inspection of a model that asks for another key": Mistake(
        _forward('return tf.reduce_mean(self.dense(batch["image"]))  # here').replace(
            "train(data, 3)", "inspect(data)"
        ),
        ("KeyError: 'image'", "It has: 'x', 'y'."),
    ),
    "the same on two replicas": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        return tf.reduce_mean(self.dense(batch["image"]))  # here


with (strategy := tfloss.make_strategy("mirrored", replicas=2)).scope():
    trainer = make_trainer(Model(), strategy=strategy)
trainer.inspect(data)
""",
        ("KeyError: 'image'", "It has: 'x', 'y'."),
    ),
    "an export function of one argument": Mistake(
        """
best = tfloss.hooks.ExportBest("losses/total", export=lambda model: None, path="best")
make_trainer(hooks=[best]).train(data, 3)  # here
""",
        ("ExportBest(export=...)", "(model, path)"),
    ),
    "fewer batches than one step accumulates": Mistake(
        "make_trainer(accumulate=4).train(examples.batch(32), 3)  # here",
        ("fewer batches than one step takes (accumulate=4)", ".repeat()"),
    ),
    "a negative number of steps": Mistake(
        "make_trainer().train(data, -3)  # here", ("at least 1, got -3",)
    ),
    "steps as a float": Mistake("make_trainer().train(data, 1e3)  # here", ("steps=1000",)),
    "a running generator": Mistake(
        """
def batches():
    while True:
        yield {"x": x[:8], "y": y[:8]}


make_trainer().train(batches(), 3)  # here
""",
        ("got generator", "Give the generator function itself", "no run could resume"),
    ),
    "a generator function without a batch": Mistake(
        """
def batches():
    yield from ()


make_trainer().train(batches, 3)  # here
""",
        ("batches yields no batch",),
    ),
    "a function without a context": Mistake(
        """
def input_fn():
    return data


make_trainer().train(input_fn, 3)  # here
""",
        ("input_fn", "def input_fn(context)"),
    ),
    "a PyDataset that changes between epochs": Mistake(
        """
class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": x[:8], "y": y[:8]}

    def on_epoch_end(self):
        np.random.shuffle(x)


make_trainer().train(Batches(), 3)  # here
""",
        ("Batches changes between epochs", "Remove on_epoch_end", "tfloss.data.Source"),
    ),
    "a PyDataset without a length": Mistake(
        """
class Batches(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return {"x": x[:8], "y": y[:8]}


make_trainer().train(Batches(), 3)  # here
""",
        ("Batches doesn't know its number of batches", "__len__"),
    ),
    "data that are not batched": Mistake(
        "make_trainer().train(examples.repeat(), 3)  # here",
        ("batch['y'] is a scalar", ".batch(batch_size)"),
    ),
    "a Source without end to evaluate": Mistake(
        """
trainer = make_trainer()
trainer.train(data, 1)
source = tfloss.data.Source({"x": x, "y": y}, batch_size=8)
trainer.evaluate(source, losses=True)  # here
""",
        ("infinite data set", "epochs=1"),
    ),
    "data without end to evaluate": Mistake(
        """
trainer = make_trainer()
trainer.train(data, 1)
trainer.evaluate(data, losses=True)  # here
""",
        ("infinite data set", ".take(n)"),
    ),
    "a Keras metric without its arguments": Mistake(
        """
trainer = make_trainer()
trainer.evaluate(data, {"accuracy": keras.metrics.SparseCategoricalAccuracy()})  # here
""",
        ("Metric 'accuracy'", "tfloss.metric("),
    ),
    "data that end too early": Mistake(
        "make_trainer().train(examples.batch(8), 30)  # here",
        ("ended after 8 batches", "at step 8 of 30", ".repeat()"),
    ),
    "a Keras callback that saves a part of the run": Mistake(
        """
hooks = [tfloss.hooks.NaNGuard(), keras.callbacks.ModelCheckpoint("best.keras")]
tfloss.Trainer(Net(), keras.optimizers.Adam(), hooks=hooks)  # here
""",
        ("Keras callback ModelCheckpoint", "tfloss.hooks.SaveCheckpoint"),
    ),
    "one hook without a list": Mistake(
        """
guard = tfloss.hooks.NaNGuard()
tfloss.Trainer(Net(), keras.optimizers.Adam(), hooks=guard)  # here
""",
        ("hooks must be a list", "hooks=[NaNGuard(...)]"),
    ),
    "a hook's class": Mistake(
        "make_trainer().train(data, 3, hooks=[tfloss.hooks.NaNGuard])  # here",
        ("hooks[0] is the class NaNGuard", "NaNGuard(...)"),
    ),
    "a model of two inputs": Mistake(
        """
class Model(Net):
    def call(self, x, y, training=False):
        return tf.reduce_mean(self.dense(x) - y)


make_trainer(Model()).train(data, 3)  # here
""",
        ("Model.call(x, y)", "train.py:", "call(self, batch, training=False)", "x, y = batch"),
    ),
    "an input of another shape": Mistake(
        _forward('return tf.reduce_sum(tf.matmul(batch["x"], tf.ones([5, 2])))  # here'),
        ("4 and 5", "batch['x']: float32 (None, 4)"),
    ),
    "a layer with inputs of another shape": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        return tf.reduce_mean(self.dense(batch["x"][:, :2]))  # here


model = Model()
model.dense.build([None, 4])
make_trainer(model).train(data, 3)
""",
        ("dense", "to have value 4", "shape (None, 2)", "batch['x']: float32 (None, 4)"),
    ),
    "labels that the batch lacks": Mistake(
        _forward('return tf.reduce_mean(self.dense(batch["x"])[batch["label"]])  # here'),
        ("KeyError: 'label'", "The batch has no 'label'", "'x', 'y'"),
    ),
    "a tuple where the model reads names": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        return tf.reduce_mean(self.dense(batch["x"]))  # here


make_trainer(Model()).train(data.map(lambda batch: (batch["x"], batch["y"])), 3)
""",
        ("The batch is a tuple", '.map(lambda x, y: {"x": x, "y": y})'),
    ),
    "a mapping where the model unpacks a tuple": Mistake(
        _forward("x, y, weight = batch  # here\nreturn tf.reduce_mean(self.dense(x))"),
        ("The batch is a mapping", "by name"),
    ),
    "a value as a NumPy array": Mistake(
        _forward('return tf.reduce_mean(self.dense(batch["x"]).numpy())  # here'),
        ("traced into a graph", "tfloss.summary"),
    ),
    "a NumPy function of a tensor": Mistake(
        _forward('return np.mean(self.dense(batch["x"]))  # here'),
        ("traced into a graph", "keras.ops instead of NumPy"),
    ),
    "a value printed": Mistake(
        _forward(
            """
loss = tf.reduce_mean(self.dense(batch["x"]))
print(f"loss {loss:.3f}")  # here
return loss
"""
        ),
        ("traced into a graph", "tf.print"),
    ),
    "a Python decision on a tensor": Mistake(
        _forward(
            """
loss = tf.reduce_mean(self.dense(batch["x"]))
if loss > 3:  # here
    loss = 3.0
return loss
"""
        ),
        ("traced into a graph", "tf.cond"),
    ),
    "a loss as a Python number": Mistake(
        _forward('return float(tf.reduce_mean(self.dense(batch["x"])))  # here'),
        ("traced into a graph",),
    ),
    "predictions in training": Mistake(
        """
model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
make_trainer(model).train(data.map(lambda batch: batch["x"]), 3)  # here
""",
        ("Loss 'loss' is not a scalar", "(None, 3)", "predictions"),
    ),
    "no loss at all": Mistake(
        _forward('self.dense(batch["x"])').replace("data, 3)", "data, 3)  # here"),
        ("reported no loss", "add_loss"),
    ),
    "a loss weight with a typing error": Mistake(
        'make_trainer(loss_weights={"lss": 2.0}).train(data, 3)  # here',
        ("loss_weights['lss']", "Did you mean 'loss'?"),
    ),
    "an optimizer by name": Mistake(
        'tfloss.Trainer(Net(), "adam")  # here', ("'adam'", "keras.optimizers.Adam(1e-3)")
    ),
    "an index that is too large": Mistake(
        _forward(
            """
label = tf.gather(batch["y"], 100)  # here
return tf.reduce_mean(self.dense(batch["x"])) * tf.cast(label, tf.float32)
"""
        ).replace("Model())", "Model(), jit=False)"),
        ("100 is not in [0, 8)", "train.py:", "(in call)"),
    ),
    "an example that can't be read": Mistake(
        """
class Examples:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"x": x[index], "y": y[index] if index != 13 else y[1000]}  # here


source = tfloss.data.Source(Examples(), batch_size=8)
make_trainer(jit=False).train(source, 30)
""",
        ("IndexError: index 1000 is out of bounds", "train.py:", "(in __getitem__)"),
    ),
    "metrics as a list": Mistake(
        """
trainer = make_trainer()
trainer.evaluate(data.take(2), [keras.metrics.SparseCategoricalAccuracy()])  # here
""",
        ("metrics must be a mapping {name: tfloss.metric(", "got list"),
    ),
    "a metric function of one argument": Mistake(
        "tfloss.metric(keras.metrics.MeanSquaredError(), lambda p: p)  # here",
        ("a function of (batch, predictions)", "lambda batch, predictions:"),
    ),
    "a metric function that returns the predictions only": Mistake(
        """
accuracy = tfloss.metric(keras.metrics.SparseCategoricalAccuracy(), lambda batch, p: p)
make_trainer().evaluate(data.take(2), {"accuracy": accuracy})  # here
""",
        ("metric 'accuracy' returned one value", "y_true", "Return a tuple"),
    ),
    "a metric of a key that the batch lacks": Mistake(
        """
def arguments(batch, predictions):
    return batch["label"], predictions  # here


accuracy = tfloss.metric(keras.metrics.SparseCategoricalAccuracy(), arguments)
make_trainer().evaluate(data.take(2), {"accuracy": accuracy})
""",
        ("Metric 'accuracy' failed with KeyError: 'label'", "(in arguments)", "'y': int64 [8]"),
    ),
    "a metric of its own with other arguments": Mistake(
        """
class Words:
    def reset(self): ...
    def update(self, y, p, w): ...
    def result(self): ...


make_trainer().evaluate(data.take(2), {"words": Words()})  # here
""",
        ("Metric 'words'", "update(y, p, w)", "(batch, predictions)"),
    ),
    "no predictions": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        if training:
            return tf.reduce_mean(self.dense(batch["x"]))


accuracy = tfloss.metric(keras.metrics.SparseCategoricalAccuracy(), lambda b, p: (b["y"], p))
make_trainer(Model()).evaluate(data.take(2), {"accuracy": accuracy})  # here
""",
        ("returned None", "if `training` is False"),
    ),
    "the name of a metric with a typing error": Mistake(
        """
accuracy = tfloss.metric(keras.metrics.SparseCategoricalAccuracy(), lambda b, p: (b["y"], p))
hooks = [
    tfloss.hooks.Evaluate(data.take(2), {"accuracy": accuracy}),
    tfloss.hooks.EarlyStopping("val/acuracy", patience=3, mode="max"),
]
make_trainer(hooks=hooks).train(data, 3)  # here
""",
        ("EarlyStopping", "'val/acuracy'", "Did you mean 'val/accuracy'?"),
    ),
    "the file of a cache that a killed process has left": Mistake(
        """
import pathlib
import tempfile

path = pathlib.Path(tempfile.mkdtemp(), "cache")
pathlib.Path(f"{path}_0.lockfile").write_text("")
make_trainer(jit=False).train(data.cache(str(path)), 3)  # here
""",
        ("cache_0.lockfile' exists", "was killed", "delete that file"),
    ),
    "one-hot labels for a sparse loss": Mistake(
        """
data = data.map(lambda batch: {"x": batch["x"], "y": tf.one_hot(batch["y"], 3)})
make_trainer().train(data, 3)  # here
""",
        ("target.shape=(None, 3)", "one-hot labels, [batch, classes]"),
    ),
    "labels that are strings": Mistake(
        """
names = np.array(["cat", "dog", "cow"])[y]
data = tf.data.Dataset.from_tensor_slices({"x": x, "y": names}).batch(8).repeat()


class Model(Net):
    def call(self, batch, training=False):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss(batch["y"], self.dense(batch["x"]))  # here


make_trainer(Model()).train(data, 3)
""",
        ("A tensor holds strings", "keras.layers.StringLookup"),
    ),
    "labels of float64": Mistake(
        """
class Model(Net):
    def call(self, batch, training=False):
        return tf.reduce_mean(self.dense(batch["x"])[:, 0] - batch["age"])  # here


ages = data.map(lambda batch: {"x": batch["x"], "age": tf.cast(batch["y"], tf.float64)})
make_trainer(Model()).train(ages, 3)
""",
        ("float64 that does not match type float32", "batch['age']: float64", "tf.cast"),
    ),
    "a list of losses": Mistake(
        _forward('loss = tf.reduce_mean(self.dense(batch["x"]))\nreturn [loss, loss]').replace(
            "data, 3)", "data, 3)  # here"
        ),
        ("a list of 2", "need names: {'box': a, 'class': b}"),
    ),
    "loss weights as a list": Mistake(
        "tfloss.Trainer(Net(), keras.optimizers.Adam(), loss_weights=[1.0, 2.0])  # here",
        ("loss_weights must be a mapping", "got list"),
    ),
    "a layer made in call": Mistake(
        _forward('return tf.reduce_mean(keras.layers.Dense(3)(self.dense(batch["x"])))  # here'),
        ("Create layers and variables in __init__",),
    ),
    "a model without super().__init__()": Mistake(
        """
class Model(keras.Model):
    def __init__(self):
        self.dense = keras.layers.Dense(3)


tfloss.Trainer(Model(), keras.optimizers.Adam())  # here
""",
        ("call super().__init__() first in Model.__init__",),
    ),
    "the class of a model": Mistake(
        "tfloss.Trainer(Net, keras.optimizers.Adam())  # here", ("Write Net(...)",)
    ),
    "the class of an optimizer": Mistake(
        "tfloss.Trainer(Net(), keras.optimizers.Adam)  # here", ("keras.optimizers.Adam(1e-3)",)
    ),
    "a strategy by name": Mistake(
        'tfloss.Trainer(Net(), keras.optimizers.Adam(), strategy="mirrored")  # here',
        ("got 'mirrored'", "tfloss.make_strategy('mirrored')"),
    ),
    "an option with a typing error": Mistake(
        'tfloss.Trainer(Net(), keras.optimizers.Adam(), work_dir="runs")  # here',
        ("no option 'work_dir'", "Did you mean 'workdir'?"),
    ),
    "a workdir that is a file": Mistake(
        """
import tempfile

file = tempfile.NamedTemporaryFile()
tfloss.Trainer(Net(), keras.optimizers.Adam(), workdir=file.name)  # here
""",
        ("must be a directory, but it is a file", "Move it away"),
    ),
    "a layer in two groups": Mistake(
        """
model = Net()
adam = keras.optimizers.Adam
groups = {"a": (adam(), model.dense), "b": (adam(), model.dense)}
tfloss.Trainer(model, groups, default_hooks=False).train(data, 3)  # here
""",
        ("kernel' is in two optimizer groups, 'a' and 'b'",),
    ),
    "a step without a result": Mistake(
        """
class Step(tfloss.TrainStep):
    def step(self, batch):
        self.minimize(self.forward, batch)


make_trainer(train_step=Step).train(data, 3)  # here
""",
        ("Step.step (train.py:", "returned None", "return self.minimize(self.forward, batch)"),
    ),
    "a function as a step": Mistake(
        "tfloss.Trainer(Net(), keras.optimizers.Adam(), train_step=print)  # here",
        ("subclass of tfloss.TrainStep",),
    ),
    "a group that doesn't exist": Mistake(
        """
class Step(tfloss.TrainStep):
    def step(self, batch):
        return self.minimize(self.forward, batch, group="critic")  # here


make_trainer(train_step=Step).train(data, 3)
""",
        ("minimize(group='critic')", "Leave group out"),
    ),
    "the name of a metric as in Keras": Mistake(
        """
hooks = [
    tfloss.hooks.Evaluate(data.take(2), losses=True),
    tfloss.hooks.EarlyStopping("val_loss", patience=3, mode="min"),
]
make_trainer(hooks=hooks).train(data, 3)  # here
""",
        ("EarlyStopping monitors 'val_loss'", "Did you mean 'val/losses/total'?"),
    ),
    "the name of a metric in a callback of Keras": Mistake(
        """
hooks = [keras.callbacks.EarlyStopping("val_loss", patience=3)]
make_trainer(hooks=hooks).train(data, 3, steps_per_epoch=3)  # here
""",
        ("EarlyStopping monitors 'val_loss', which nothing logs", "need an Evaluate hook"),
    ),
    "data without end in a hook": Mistake(
        """
hooks = [tfloss.hooks.Evaluate(data, losses=True, every=tfloss.Every(steps=2))]
make_trainer(hooks=hooks).train(data, 3)  # here
""",
        ("infinite data set", ".take(n)"),
    ),
    "a method of another trainer": Mistake(
        "make_trainer().fit(data, epochs=3)  # here",
        ("no attribute 'fit'", "Write trainer.train(data, epochs=3)"),
    ),
    "validation data as in Keras": Mistake(
        "make_trainer().train(data, 3, validation_data=data)  # here",
        ("argument 'validation_data'", "tfloss.hooks.Evaluate(data, metrics"),
    ),
    "an option of another trainer": Mistake(
        "tfloss.Trainer(Net(), keras.optimizers.Adam(), max_epochs=3)  # here",
        ("no option 'max_epochs'", "train(data, epochs=3)"),
    ),
    "a Keras model without a loss": Mistake(
        """
model = keras.Sequential([keras.layers.Dense(3)])
make_trainer(model).train((x, y), epochs=1, batch_size=8)  # here
""",
        ("received 2 input tensors", "tfloss.adapters.supervised(model", "from_compiled"),
    ),
    "arrays as data and labels": Mistake(
        "make_trainer().train(x, y, epochs=3)  # here", ("train((x, y), epochs=3, batch_size=32)",)
    ),
    "a path as data": Mistake(
        'make_trainer().train("data/train", 3)  # here',
        ("got str", "image_dataset_from_directory(path)"),
    ),
    "images of integers": Mistake(
        _forward('return tf.reduce_mean(self.dense(batch["y"][:, None] / 255.0))  # here').replace(
            "train(data", 'train(data.map(lambda b: {"y": tf.cast(b["y"], tf.uint8)})'
        ),
        ("must have the same dtype", "tf.cast(x, tf.float32)"),
    ),
    "a trigger without a unit": Mistake("tfloss.Every(100)  # here", ("Every(steps=100)",)),
    "a trigger of another name": Mistake("tfloss.Every(epoch=1)  # here", ("'epochs'?",)),
    "metrics by name": Mistake(
        'tfloss.hooks.Evaluate(data, ["accuracy"])  # here', ("mapping {name: tfloss.metric(",)
    ),
    "several optimizers as a list": Mistake(
        "tfloss.Trainer(Net(), [keras.optimizers.Adam(), keras.optimizers.SGD()])  # here",
        ("{'body': (optimizer, layers)",),
    ),
    "a strategy of another library": Mistake(
        'tfloss.make_strategy("ddp")  # here', ("Unknown strategy 'ddp'", "mirrored")
    ),
}
