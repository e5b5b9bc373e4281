"""Records of prepared TFDS data sets are read by index from their files."""

import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfloss.datasets.digits  # registers the name  # noqa: F401
from tests.fork import run_script
from tfloss.data import Source
from tfloss.data.tfds_records import RecordFiles, Records, open_tfds
from tfloss.errors import DataError


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Pictures of different sizes, boxes of different numbers, text; in several shards."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = tfds.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "id": np.int64,
                    "image": features.Image(shape=(None, None, 3), encoding_format="png"),
                    "boxes": features.Sequence({"box": features.BBoxFeature()}),
                    "text": features.Text(),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, 23),
            "test": self._generate_examples(23, 30),
        }

    def _generate_examples(self, low, high):
        for index in range(low, high):
            box = tfds.features.BBox(0.0, 0.0, 0.5, index / 100)
            yield (
                index,
                {
                    "id": index,
                    "image": np.full((2 + index % 3, 4, 3), index, np.uint8),
                    "boxes": [{"box": box}] * (index % 4),
                    "text": f"number {index}",
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    tfds.load("digits", data_dir=path)
    shards = tfds.download.DownloadConfig(num_shards=4)
    Shapes(data_dir=path).download_and_prepare(download_config=shards)
    return path


@pytest.fixture
def builder(data_dir: Path) -> Shapes:
    return Shapes(data_dir=data_dir)


def ids(records: Records) -> list[int]:
    taken = records.take(tf.range(len(records), dtype=tf.int64))
    return [int(records.decode(one)["id"]) for one in taken]


def test_a_source_has_the_examples_of_as_dataset(data_dir: Path):
    source = Source.from_tfds("digits", "train", data_dir=data_dir, batch_size=100, epochs=1)
    assert len(source) == 1437 and source.steps_per_epoch == 14.37
    expected = tfds.load("digits", split="train", data_dir=data_dir)
    assert source.element_spec["image"].shape.as_list() == [None, 8, 8, 1]
    found = [
        (image.tobytes(), label)
        for batch in source.dataset().as_numpy_iterator()
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]
    assert len(found) == 1437
    assert set(found) == {(e["image"].tobytes(), e["label"]) for e in expected.as_numpy_iterator()}


def test_starting_at_k_is_skipping_k(data_dir: Path):
    def augment(example, seed):
        noise = tf.random.stateless_uniform([8, 8, 1], seed)
        return {**example, "image": example["image"] + noise}

    source = Source.from_tfds("digits", "test", data_dir=data_dir, batch_size=50, map=augment)
    whole = list(source.dataset().take(12).as_numpy_iterator())
    for start in (1, 7, 8, 11):
        for one, other in zip(
            source.dataset(start).take(12 - start).as_numpy_iterator(), whole[start:], strict=True
        ):
            np.testing.assert_array_equal(one["image"], other["image"])
            np.testing.assert_array_equal(one["label"], other["label"])


def test_every_feature_is_decoded_as_by_tfds(builder: Shapes):
    records = Records(builder, "train")
    taken = records.take(tf.range(23, dtype=tf.int64))
    found = {int(e["id"]): e for e in map(records.decode, taken)}
    for expected in builder.as_dataset(split="train"):
        one = found.pop(int(expected["id"]))
        tf.nest.map_structure(np.testing.assert_array_equal, one, expected)
    assert not found

    def padded(example):
        return {"id": example["id"], "image": tf.image.resize_with_pad(example["image"], 4, 4)}

    source = Source(records, batch_size=8, map=padded)
    assert source.element_spec["image"].shape.as_list() == [8, 4, 4, 3]
    batch = next(iter(source.dataset()))
    assert batch["image"].numpy().max(axis=(1, 2, 3)).tolist() == batch["id"].numpy().tolist()


@pytest.mark.parametrize(
    "split", ["test", "train[:80%]", "train[80%:]", "train[3:4]", "train[:2]+test[-3:]"]
)
def test_sub_splits_are_those_of_tfds(builder: Shapes, split: str):
    order = tfds.ReadConfig(interleave_cycle_length=1)
    expected = [int(e["id"]) for e in builder.as_dataset(split=split, read_config=order)]
    assert ids(Records(builder, split)) == expected
    assert sorted(ids(Records(builder, split))) == sorted(expected)


def test_a_read_instruction_is_a_split(builder: Shapes):
    half = tfds.core.ReadInstruction("train", to=50, unit="%")
    assert len(Records(builder, half)) == 12  # of 23, rounded as TFDS does


def test_the_data_set_has_several_shards(builder: Shapes):
    assert len(builder.info.splits["train"].filenames) == 4


def test_decoders_are_passed_on(builder: Shapes):
    records = Records(builder, "test", decoders={"image": tfds.decode.SkipDecoding()})
    example = records.decode(records.take(tf.constant([0], tf.int64))[0])
    assert example["image"].dtype == tf.string
    assert example["image"].numpy().startswith(b"\x89PNG")


def test_array_record_files_are_read_by_their_own_index(tmp_path: Path):
    pytest.importorskip("array_record")
    builder = Shapes(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    records = open_tfds(builder, "train[5:15]")
    expected = [int(e["id"]) for e in builder.as_data_source("train[5:15]")]
    assert ids(records) == expected and len(expected) == 10
    source = Source(records, batch_size=3, map=lambda e: {"id": e["id"], "text": e["text"]})
    batch = next(iter(source.dataset(2)))
    assert batch["text"].numpy().tolist() == [b"number %d" % i for i in batch["id"].numpy()]


def test_identity_names_data_set_version_and_split(data_dir: Path):
    source = Source.from_tfds("digits", "train[:80%]", data_dir=data_dir, batch_size=4, seed=2)
    assert source.identity() == {
        "examples": 1150,
        "batch_size": 4,
        "seed": 2,
        "shuffle": True,
        "epochs": None,
        "drop_remainder": False,
        "tfds": "digits/1.0.0",
        "split": "train[:80%]",
    }


def test_the_error_for_an_unprepared_data_set_says_how_to_prepare_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    began = time.monotonic()
    for name in ("fashion_mnist", "digits"):
        with pytest.raises(DataError, match=rf"{name}/\S+ is not prepared in '{tmp_path}'") as info:
            Source.from_tfds(name, "train", data_dir=tmp_path, batch_size=4)
    assert time.monotonic() - began < 20  # also on a busy machine
    assert "download=True" in str(info.value) and "minutes" in str(info.value)
    # The line that it gives is one that works.
    line = str(info.value).splitlines()[1].strip()
    script = tmp_path / "script.py"
    script.write_text(f"import tfloss.datasets.digits; {line}")
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert len(Source.from_tfds("digits", "test", data_dir=tmp_path, batch_size=4)) == 360


def test_download_prepares_the_data_set(tmp_path: Path):
    source = Source.from_tfds("digits", "test", data_dir=tmp_path, download=True, batch_size=4)
    assert len(source) == 360 and next(iter(source.dataset()))["image"].shape == [4, 8, 8, 1]


# Files


class Instruction:
    """What RecordFiles takes of TFDS's own."""

    def __init__(self, filename: str, number: int, skip: int = 0):
        self.filename, self.examples_in_shard = filename, number
        self.skip, self.take = skip, number - skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(found)) as writer:
        for size in (0, 1, 7, 1000):
            writer.write(bytes([size % 251]) * size)
    return found


def test_records_are_found_by_index(path: Path):
    files = RecordFiles([Instruction(str(path), 4), Instruction(str(path), 4, skip=2)])
    assert len(files) == 6
    assert [len(one) for one in files.__getitems__([3, 0, 2, 1, 5, 4])] == [1000, 0, 7, 1, 1000, 7]
    assert files[4] == b"\7" * 7


def test_corrupt_files_are_named(path: Path):
    whole = path.read_bytes()
    for corrupt in (whole[:-1], whole[:30], whole + b"\0", whole[:-1016], b"", _longer(whole)):
        path.write_bytes(corrupt)
        with pytest.raises(
            DataError, match=r"a\.tfrecord is corrupt or truncated: it should hold 4 records"
        ):
            RecordFiles([Instruction(str(path), 4)])
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tfrecord is missing"):
        RecordFiles([Instruction(str(path), 4)])


def _longer(whole: bytes) -> bytes:
    """The first header claims a huge record."""
    return struct.pack("<Q", 2**62) + whole[8:]
