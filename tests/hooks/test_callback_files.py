import csv

import keras
import tensorflow as tf

from tfloss.hooks.callback_files import continue_files


def test_a_csv_file_keeps_complete_epochs_and_gets_no_second_head(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch;loss\n0;3.0\n1;2.0\n2;1.0\n3;")
    callback = keras.callbacks.CSVLogger(path, separator=";")
    before = path.read_text()
    continue_files(callback, epochs=2, step=25, keep=True)
    assert (tmp_path / "superseded.log.csv").read_text() == before
    callback.on_train_begin()
    callback.on_epoch_end(2, {"loss": 0.5})
    callback.on_train_end()
    rows = list(csv.DictReader(path.open(), delimiter=";"))
    assert [(row["epoch"], row["loss"]) for row in rows] == [
        ("0", "3.0"),
        ("1", "2.0"),
        ("2", "0.5"),
    ]


def test_a_missing_file_is_new(tmp_path):
    callback = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    continue_files(callback, epochs=2, step=25)
    callback.on_train_begin()
    callback.on_epoch_end(2, {"loss": 0.5})
    callback.on_train_end()
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,loss,val_loss"


def test_event_files_lose_what_is_repeated(tmp_path):
    """Values of epochs count epochs, those of batches count batches, and graphs have step 0."""
    with tf.summary.create_file_writer(str(tmp_path / "train")).as_default() as writer:
        tf.summary.text("keras", "graph", step=0)
        for epoch in range(3):
            tf.summary.scalar("epoch_loss", 1.0, step=epoch)
        for batch in (10, 25, 26):
            tf.summary.scalar("batch_loss", 1.0, step=batch)
        writer.close()
    callback = keras.callbacks.TensorBoard(tmp_path)
    for _ in range(2):  # the second time, nothing is to be removed
        continue_files(callback, epochs=1, step=25)
        (path,) = (tmp_path / "train").iterdir()
        events = list(tf.compat.v1.train.summary_iterator(str(path)))
        assert events[0].file_version
        found = [(v.tag, event.step) for event in events for v in event.summary.value]
        assert found == [("keras", 0), ("epoch_loss", 0), ("batch_loss", 10), ("batch_loss", 25)]
