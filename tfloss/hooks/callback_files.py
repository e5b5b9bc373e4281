"""Lets the files of Keras callbacks continue in a resumed run. Host code.

A run that was killed in epoch 7 and resumes from the checkpoint of epoch 5 trains two epochs again.
What the callbacks wrote about these is removed, so that no epoch is there twice, or out of order.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import keras

from tfloss.common.replacement import replace_file
from tfloss.hooks.event_records import event_windows, record_names, split_window
from tfloss.hooks.log_truncation import truncate_after


def continue_files(
    callback: keras.callbacks.Callback, epochs: int, step: int, *, keep: bool = False
) -> None:
    """Removes what a resumed run writes again, and lets `CSVLogger` append to its file.

    Args:
      callback: A callback, before its `on_train_begin`.
      epochs: Number of epochs that are complete.
      step: Number of updates that are done.
      keep: Whether to copy a file to `superseded.<name>` before something is removed from it.
    """
    if isinstance(callback, keras.callbacks.CSVLogger):
        _continue_csv(callback, epochs, keep)
    elif isinstance(callback, keras.callbacks.TensorBoard):
        for path in sorted(Path(callback.log_dir).glob("*/*tfevents*")):
            truncate_after(
                path,
                _STAYS,
                lambda data: _split_events(data, epochs, step),
                windows=lambda file: event_windows(file, _WRITER),
                keep=keep,
            )


def _continue_csv(callback: keras.callbacks.CSVLogger, epochs: int, keep: bool) -> None:
    path, callback.append = Path(callback.filename), True
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)

    def stays(line: str) -> bool:
        first = next(csv.reader(io.StringIO(line), delimiter=callback.sep), [""])[0]
        return line.endswith("\n") and not (first.isdigit() and int(first) >= epochs)

    kept = "".join(line for line in lines if stays(line))
    if kept != "".join(lines):
        replace_file(path, kept.encode(), is_own=lambda old: not keep)


_STAYS, _REPEATED = 1, 2
_WRITER = "tensorflow.core.util.events_writer"  # of tf.summary, by which the callback writes


def _split_events(data: bytes, epochs: int, step: int) -> Iterator[tuple[bytes, int | None]]:
    """Yields the records of a window, and whether the run writes them again.

    The callback counts the values of epochs in epochs from 0, and those of batches in batches.
    """
    for record, at in split_window(data):
        if at is None:  # damaged
            yield record, None
            continue
        repeated = any(
            at >= epochs if name.startswith("epoch_") else at > step
            for name in record_names(record)
            if name.startswith(("epoch_", "batch_"))
        )
        yield record, _REPEATED if repeated else _STAYS
