"""The `digits` builder: the right images, the same split on every machine, read from disk."""

import builtins
import collections
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

import tfloss.datasets.digits
from tfloss.datasets.digits import Digits, split_indices

Split = tuple[np.ndarray, np.ndarray]  # images, labels

network: list[str] = []  # what the process asked of the network, by the audit hook below


def _audit(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        network.append(f"{event} {args[1:]}")


sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set was prepared by the call that a user would make."""
    path = tmp_path_factory.mktemp("tfds")
    network.clear()
    tfds.disable_progress_bar()
    tfds.load("digits", data_dir=path)
    assert network == []
    return path


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> dict[str, Split]:
    found = {}
    for name, dataset in tfds.load("digits", data_dir=data_dir).items():
        examples = list(dataset.as_numpy_iterator())
        found[name] = (
            np.stack([example["image"] for example in examples]),
            np.array([example["label"] for example in examples]),
        )
    return found


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_the_splits_have_1437_and_360_examples(data_dir: Path, splits: dict[str, Split]):
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {
        "train": 1437,
        "test": 360,
    }
    builder = tfds.builder("digits", data_dir=data_dir)
    assert builder.info.splits["train"].num_examples == 1437
    assert builder.info.splits["test"].num_examples == 360


def test_an_example_is_a_float_image_in_0_1_and_a_label(splits: dict[str, Split]):
    for images, labels in splits.values():
        assert images.shape[1:] == (8, 8, 1) and images.dtype == np.float32
        assert images.min() == 0.0 and images.max() == 1.0
        assert labels.dtype == np.int64 and set(labels) == set(range(10))


def test_the_values_are_scikit_learns_each_exactly_once(splits: dict[str, Split]):
    source = load_digits()
    expected = {
        (image / 16).astype(np.float32).tobytes(): label
        for image, label in zip(source.images, source.target, strict=True)
    }
    assert len(expected) == 1797  # no picture twice, so each names its example
    seen = collections.Counter()
    for images, labels in splits.values():
        for row, label in zip(rows(images), labels, strict=True):
            assert expected[row] == label
            seen[row] += 1
    assert len(seen) == 1797 and set(seen.values()) == {1}


def test_no_test_image_is_in_the_training_split(splits: dict[str, Split]):
    assert not set(rows(splits["train"][0])) & set(rows(splits["test"][0]))


def test_each_class_gives_a_fifth_of_itself_to_the_test_split(splits: dict[str, Split]):
    train, test = (np.bincount(splits[name][1], minlength=10) for name in ("train", "test"))
    np.testing.assert_array_equal(train + test, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert np.all(np.abs(test - (train + test) / 5) < 1)


def test_the_split_never_changes():
    """Published accuracies compare only as long as these numbers stay as they are."""
    train, test = split_indices(load_digits().target)
    assert test[:8].tolist() == [9, 12, 15, 27, 34, 39, 52, 59]
    assert (len(train), len(test), test.sum()) == (1437, 360, 337431)
    assert not set(train) & set(test)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))


def test_another_seed_is_another_split():
    labels = load_digits().target
    assert split_indices(labels, seed=1)[1].tolist() != split_indices(labels)[1].tolist()


def test_a_second_load_reads_and_does_not_generate(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(tfloss.datasets.digits, "load_sklearn", fail)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    network.clear()
    assert len(list(tfds.load("digits", split="test", data_dir=data_dir))) == 360
    assert network == []
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_prepared_data_needs_neither_the_builder_nor_scikit_learn(data_dir: Path):
    path = next(data_dir.glob("digits/*/dataset_info.json")).parent
    dataset = tfds.builder_from_directory(path).as_dataset(split="train[:5]")
    assert len(list(dataset)) == 5


def test_slicing_and_supervised_pairs_work(data_dir: Path):
    dataset = tfds.load("digits", split="train[:10%]", as_supervised=True, data_dir=data_dir)
    image, label = next(iter(dataset))
    assert image.shape == (8, 8, 1) and label.shape == ()
    assert len(dataset) == 144


def test_without_scikit_learn_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ImportError("No module named 'sklearn'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'tfloss\[examples\]'"):
        Digits(data_dir=tmp_path).download_and_prepare()


def test_the_network_watch_sees_a_connection():
    """The assertions above would hold for a watch that sees nothing, too."""
    network.clear()
    with socket.socket() as probe, pytest.raises(OSError):
        probe.settimeout(1)
        probe.connect(("127.0.0.1", 1))
    assert len(network) == 1
