"""Prepares a TFDS data set once, even if several processes of a machine need it. Host code."""

import contextlib
import os
import random
from collections.abc import Callable, Generator
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
    """Returns a builder whose data set is prepared in its data_dir, and prepares it if needed.

    Two workers that prepare the same data set overwrite each other's files, and both fail. Here the
    first one prepares it, and the others wait. (On a remote file system such as gs:// no worker
    waits: prepare the data set beforehand.) TFDS's own progress bars are turned off.

        builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir="data"))
        train = builder.as_dataset(split="train")

    Args:
      make: Function that returns the builder; called again once the data set is prepared.
      download: Whether the data set may be downloaded.

    Raises:
      DataError: The data set would have to be downloaded, but `download` is False.
    """
    builder = make()
    if builder.data_path.exists():
        return builder
    if builder.url_infos and not download:
        full = builder.info.full_name
        root = str(builder.data_dir).removesuffix(full).rstrip("/")
        raise DataError(
            f"The data set {full} is not in {root!r}, and must not be downloaded here. Prepare it "
            f"with: tfds build {full.rpartition('/')[0]} --data_dir={root}"
        )
    with _locked(str(builder.data_dir)):
        import tensorflow_datasets as tfds

        builder = make()
        tfds.disable_progress_bar()  # it would write over the progress line
        with _random_states_kept():
            builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _random_states_kept() -> Generator[None]:
    """Restores the random states of Python and NumPy at the end of the `with`.

    TFDS draws the names of temporary files from Python's generator, and Keras the seeds of initial
    weights. So the run that prepares a data set would start from other weights than later runs.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _locked(data_dir: str) -> Generator[None]:
    """Allows one process at a time inside the `with`. The lock ends with its process."""
    if "://" in data_dir or os.name != "posix":
        yield
        return
    path = Path(data_dir).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(path):
        yield
