"""Random access to the records of a prepared TFDS data set, in its files. Host code.

TFDS writes TFRecord files, which are made for sequential reading: each record follows a header with
its length. Reading all headers once gives an index, and then any record takes one `pread`. Nothing
is converted or copied. (array_record files contain such an index.)
"""

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfloss.data.examples import SequenceExamples
from tfloss.data.tfds_prepare import prepared
from tfloss.errors import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_HEADER = 12  # bytes: the length, a little-endian uint64, and its checksum
_FOOTER = 4  # bytes: the checksum of the data


class Records(SequenceExamples):
    """The examples of a prepared TFDS data set, for a `Source`.

    Args:
      builder: Builder of a data set that is prepared in files of this machine.
      split: Split as TFDS understands it: "train", "train[:80%]", "train+test", a
        `ReadInstruction`.
      decoders: Decoders as for `tfds.load`, such as `{"image": tfds.decode.SkipDecoding()}`.

    Raises:
      DataError: The files can't be read by index, or one of them is corrupt.
    """

    def __init__(self, builder: "tfds.core.DatasetBuilder", split: Any, *, decoders: Any = None):
        """Reads the index of the files."""
        import tensorflow_datasets as tfds

        self._builder: Any = builder
        info = self._builder.info
        self._split = split
        self._decoders = decoders
        kind = info.file_format
        if kind == tfds.core.FileFormat.TFRECORD:
            records = RecordFiles(info.splits[split].file_instructions)
        elif kind == tfds.core.FileFormat.ARRAY_RECORD:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            records = self._builder.as_data_source(split, deserialize_method=raw)
        else:
            raise DataError(
                f"The data set {info.full_name} is in {kind.value} files, which have no random "
                "access. Prepare it as tfrecord or array_record: "
                'tfds.builder(..., file_format="array_record").download_and_prepare()'
            )
        super().__init__(records, self._deserialize)

    def _deserialize(self, serialized: tf.Tensor) -> Any:
        """Returns the example of a record, as `as_dataset` yields it. Traced."""
        features = self._builder.info.features
        return features.deserialize_example(serialized, decoders=self._decoders)

    def identity(self) -> dict[str, Any]:
        """Returns the name and version of the data set, and the split."""
        return {"tfds": self._builder.info.full_name, "split": str(self._split)}


class RecordFiles:
    """A sequence of the records in parts of TFRecord files, in order.

    Args:
      instructions: TFDS's `file_instructions` of a split: the files, and how many records to skip
        and to take in each.

    Raises:
      DataError: A file is missing, truncated, or has a wrong number of records.
    """

    def __init__(self, instructions: Sequence[Any]):
        """Reads the headers of all records."""
        self._files = [os.fspath(one.filename) for one in instructions]
        tables = []
        for number, one in enumerate(instructions):
            table = _index(self._files[number], one.examples_in_shard)
            table = table[one.skip : one.skip + one.take]
            tables.append(np.column_stack([np.full(len(table), number), table]))
        self._table = np.concatenate(tables) if tables else np.zeros((0, 3), np.int64)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._table)

    def __getitem__(self, index: int) -> bytes:
        """Returns one record."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        """Returns several records."""
        return [self._read(*row) for row in self._table[indices].tolist()]

    def _read(self, file: int, offset: int, length: int) -> bytes:
        # Opened each time, which takes 2 us: there may be more files than a process may have open.
        handle = os.open(self._files[file], os.O_RDONLY)
        try:
            found = os.pread(handle, length, offset)
        finally:
            os.close(handle)
        if len(found) != length:
            raise DataError(
                f"{self._files[file]} was truncated while in use. Prepare the data set again."
            )
        return found


def open_tfds(
    name: "str | tfds.core.DatasetBuilder",
    split: Any,
    *,
    data_dir: Any = None,
    download: bool = False,
    decoders: Any = None,
) -> Records:
    """Returns the examples of a TFDS data set.

    Args:
      name: Name as for `tfds.load`, such as "mnist" or "coco/2017"; or a builder.
      split: Split as for `Records`.
      data_dir: Directory of the prepared data set; None is TFDS's default. A builder has its own.
      download: Whether to download and prepare the data set if needed, once for all processes of
        this machine.
      decoders: Decoders as for `Records`.

    Raises:
      DataError: The data set isn't prepared, or `Records` can't read it.
    """
    import tensorflow_datasets as tfds

    def make() -> "tfds.core.DatasetBuilder":
        return tfds.builder(name, data_dir=data_dir) if isinstance(name, str) else name

    builder = make()
    if not builder.data_path.exists():
        if not download:
            full = builder.info.full_name
            named = full.rpartition("/")[0]  # without the version
            root = str(builder.data_dir).removesuffix(full).rstrip("/")
            raise DataError(
                f"The data set {full} is not prepared in {root!r}. Prepare it once with:\n"
                "    import tensorflow_datasets as tfds; "
                f"tfds.builder({named!r}, data_dir={root!r}).download_and_prepare()\n"
                "or pass download=True, which does the same. Both download the source files, if "
                "there are any; without a network they retry for minutes."
            )
        builder = prepared(make)
    return Records(builder, split, decoders=decoders)


def _index(path: str, number: int) -> np.ndarray:
    """Returns the offset and length of each record's data, int64 [number, 2]."""
    found = []
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            begin, end = 0, len(data)
            while begin < end:
                length = int.from_bytes(data[begin : begin + 8], "little")
                found.append((begin + _HEADER, length))
                begin += _HEADER + length + _FOOTER
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Prepare the data set again.") from None
    except ValueError:  # an empty file can't be mapped to memory
        begin = end = 0
    if begin != end or len(found) != number:
        raise DataError(
            f"{path} is corrupt or truncated: it should hold {number} records and end after them, "
            f"but {len(found)} were found. Prepare the data set again."
        )
    return np.array(found, np.int64).reshape(-1, 2)
