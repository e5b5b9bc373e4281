"""Prepares a TFDS data set once, however many processes of a machine or cluster want it."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfloss.common.files import locked_file
from tfloss.errors import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def prepared(
    make: "Callable[[], tfds.core.DatasetBuilder]", *, download: bool = True
) -> "tfds.core.DatasetBuilder":
    """A builder whose data set lies in its data_dir; made there now if it didn't. Host code.

    Two workers that prepare the same data set write over each other's files, and both fail. Here
    the first one does it, and the others wait. (On a remote file system such as gs:// nobody waits:
    prepare the data set beforehand.)

        builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir="data"))
        train = builder.as_dataset(split="train")

    Args:
      make: makes the builder; called again once the data set is there.
      download: False for data sets that nobody wants to download by accident.

    Raises:
      DataError: it isn't there, and making it would download it with `download=False`.
    """
    builder = make()
    if builder.data_path.exists():
        return builder
    if builder.url_infos and not download:
        full = builder.info.full_name
        root = str(builder.data_dir).removesuffix(full).rstrip("/")
        raise DataError(
            f"The data set {full} is not in {root!r}, and is not downloaded from here. Prepare it "
            f"with: tfds build {full.rpartition('/')[0]} --data_dir={root}"
        )
    with _locked(str(builder.data_dir)):
        builder = make()
        with _random_states_kept():
            builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """TFDS draws the names of temporary files from Python's generator, as Keras does the seeds of
    initial weights: the run that prepares a data set would begin with others than all later ones.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _locked(data_dir: str) -> Iterator[None]:
    """Waits for the other processes that are in here. The lock goes when its process does."""
    if "://" in data_dir or os.name != "posix":
        yield
        return
    path = Path(data_dir).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(path):
        yield
