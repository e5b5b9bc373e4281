"""The files that the reader has: a CSV, arrays, pictures and TFRecords."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import tfloss

CAPPED = False  # the check wants what the page promises

rng = np.random.default_rng(0)
count = 200
area, rooms = rng.uniform(40, 200, count), rng.integers(1, 7, count)
city = rng.choice(["Bergen", "Oslo"], count)
price = 1_000 * area * np.where(city == "Oslo", 2, 1) + 20_000 * rooms
columns = {"area": area, "rooms": rooms, "city": city, "price": price}
pd.DataFrame({**columns, "sold": (area < 100).astype(int)}).to_csv("houses.csv", index=False)

np.save("x.npy", rng.random([90, 4], np.float32))
np.save("y.npy", rng.integers(0, 3, 90))
for kind in ("cat", "dog"):
    Path("photos", kind).mkdir(parents=True)
    for i in range(4):
        pixels = rng.integers(0, 256, [10, 12, 3]).astype(np.float32)
        keras.utils.save_img(f"photos/{kind}/{i}.png", pixels)

Path("records").mkdir()
with tf.io.TFRecordWriter("records/part-0.tfrecord") as writer:
    for i in range(40):
        features = {
            "x": tf.train.Feature(float_list=tf.train.FloatList(value=rng.random(4))),
            "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 3])),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writer.write(example.SerializeToString())

if importlib.util.find_spec("datasets"):
    import datasets
    import pyarrow

    points = pyarrow.table({"x": rng.random([40, 4]).tolist(), "y": rng.integers(0, 3, 40)})
    datasets.Dataset(points, fingerprint="points").save_to_disk("points")


def check(page):
    trainer = tfloss.Trainer(page["Houses"](), workdir="runs/houses")
    trainer.restore(page["train_set"], best="val/price_error")
    found = trainer.evaluate(page["val_set"], page["metrics"])
    assert found["sold_accuracy"] > 0.9, found
    assert found["price_error"] < 0.25 * price.std(), (found, price.std())
    assert trainer.step in (250, 500, 750, 1_000)
    filled, guess = page["filled"], np.float32([1, 2, 9])
    assert not any(np.isnan(v).any() for v in filled.values() if v.dtype == np.float32)
    batch = {"price": np.float32([0, 4, 9]), "price_is_known": np.float32([0, 1, 1])}
    assert float(page["price_loss"](batch, guess)) == 2.0  # (4 + 0) / 2
