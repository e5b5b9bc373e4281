"""Records by number: random access to a TFDS data set as it lies on the disk.

TFDS writes TFRecord files, which are read from front to back: each record follows a header with
its length. Read once, the headers make an index, and any record is one `pread` away. Nothing is
converted or copied. (A set in array_record files has such an index in them.)
"""

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfloss.data.examples import Items
from tfloss.data.tfds_prepare import prepared
from tfloss.errors import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_HEADER = 12  # bytes: uint64 length, little-endian, and its checksum
_FOOTER = 4  # the checksum of the data


class Records(Items):
    """The examples of a prepared TFDS data set, for a `Source`. Host code.

    Args:
      builder: of a data set that is prepared, in files of this machine.
      split: as TFDS understands it: "train", "train[:80%]", "train+test", a `ReadInstruction`.
      decoders: as of `tfds.load`, such as `{"image": tfds.decode.SkipDecoding()}`.

    Raises:
      DataError: it is in files that can't be read by number, or one of them is damaged: which.
    """

    def __init__(self, builder: "tfds.core.DatasetBuilder", split: Any, *, decoders: Any = None):
        import tensorflow_datasets as tfds

        self._builder: Any = builder
        info = self._builder.info
        self._split = split
        self._decoders = decoders
        kind = info.file_format
        if kind == tfds.core.FileFormat.TFRECORD:
            super().__init__(RecordFiles(info.splits[split].file_instructions))
        elif kind == tfds.core.FileFormat.ARRAY_RECORD:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            super().__init__(self._builder.as_data_source(split, deserialize_method=raw))
        else:
            raise DataError(
                f"The data set {info.full_name} is in {kind.value} files, which can't be "
                "read by number here. Prepare it as tfrecord or array_record: "
                'tfds.builder(..., file_format="array_record").download_and_prepare()'
            )

    def decode(self, serialized: tf.Tensor) -> Any:  # type: ignore[override]
        """The example of a record: a nest of tensors, as of `as_dataset`. Traced."""
        features = self._builder.info.features
        return features.deserialize_example(serialized, decoders=self._decoders)

    def identity(self) -> dict[str, Any]:
        """Name and version of the data set, and the split."""
        return {"tfds": self._builder.info.full_name, "split": str(self._split)}


class RecordFiles:
    """A sequence of the records in parts of TFRecord files, in their order. Host code.

    Args:
      instructions: TFDS's `file_instructions` of a split: which files, how many records of each to
        pass over and to take.

    Raises:
      DataError: a file that is missing, cut off, or has another number of records than it should.
    """

    def __init__(self, instructions: Sequence[Any]):
        self._files = [os.fspath(one.filename) for one in instructions]
        tables = []
        for number, one in enumerate(instructions):
            table = _index(self._files[number], one.examples_in_shard)
            table = table[one.skip : one.skip + one.take]
            tables.append(np.column_stack([np.full(len(table), number), table]))
        self._table = np.concatenate(tables) if tables else np.zeros((0, 3), np.int64)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> bytes:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        return [self._read(*row) for row in self._table[indices].tolist()]

    def _read(self, file: int, offset: int, length: int) -> bytes:
        # Opened each time, 2 us: there may be more files than a process may hold open.
        handle = os.open(self._files[file], os.O_RDONLY)
        try:
            found = os.pread(handle, length, offset)
        finally:
            os.close(handle)
        if len(found) != length:
            raise DataError(f"{self._files[file]} was cut off while it was in use.")
        return found


def open_tfds(
    name: "str | tfds.core.DatasetBuilder",
    split: Any,
    *,
    data_dir: Any = None,
    download: bool = False,
    decoders: Any = None,
) -> Records:
    """The examples of a TFDS data set. Host code.

    Args:
      name: as of `tfds.load`, such as "mnist" or "coco/2017"; or a builder.
      split: see `Records`.
      data_dir: where it is prepared; TFDS's default if None. Not with a builder, which knows.
      download: prepares it first if need be, once for all processes of this machine.
      decoders: see `Records`.

    Raises:
      DataError: it is not prepared, and how to do that; see also `Records`.
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
                f"The data set {full} is not prepared in {root!r}. Prepare it once, with:\n"
                "    import tensorflow_datasets as tfds; "
                f"tfds.builder({named!r}, data_dir={root!r}).download_and_prepare()\n"
                "or pass download=True, which does the same. Both download what the data set is "
                "made from, if anything; without a network they go on trying for minutes."
            )
        builder = prepared(make)
    return Records(builder, split, decoders=decoders)


def _index(path: str, number: int) -> np.ndarray:
    """Offset and length of each record's data, int64 [number, 2]."""
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
    except ValueError:  # an empty file can't be mapped
        begin = end = 0
    if begin != end or len(found) != number:
        raise DataError(
            f"{path} is damaged or cut off: it should hold {number} records, but {len(found)} were "
            "found, and they should end where it does. Prepare the data set again."
        )
    return np.array(found, np.int64).reshape(-1, 2)
