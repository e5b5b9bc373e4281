import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.fork import run_script
from tfloss.data.tfds_prepare import prepared
from tfloss.datasets.digits import Digits
from tfloss.errors import DataError

CODE = """
import sys
from tfloss.datasets.digits import Digits
from tfloss.data.tfds_prepare import prepared
builder = prepared(lambda: Digits(data_dir=sys.argv[1]))
print(builder.info.splits["train"].num_examples, len(list(builder.as_dataset(split="test"))))
"""


def test_two_processes_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CODE)
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda _: run_script(script, str(tmp_path / "data")), range(2)):
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == "1437 360"


def test_a_prepared_data_set_is_used(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return Digits(data_dir=str(tmp_path))

    prepared(make)
    assert len(calls) == 2
    builder = prepared(make)
    assert len(calls) == 3
    (one,) = builder.as_dataset(split="test[:1]")
    assert np.asarray(one["image"]).shape == (8, 8, 1)


def test_the_error_for_a_missing_download_says_how_to_prepare_it(tmp_path):
    def make():
        return tfds.builder("coco/2017", data_dir=tmp_path / "data")

    with pytest.raises(DataError, match=r"tfds build coco/2017 --data_dir=\S*/data$"):
        prepared(make, download=False)
    builder = prepared(lambda: Digits(data_dir=tmp_path), download=False)  # needs no download
    assert builder.info.splits["test"].num_examples == 360


def test_preparing_does_not_change_the_random_states(tmp_path):
    drawn = []
    for _ in range(2):  # made, then found
        random.seed(3)
        np.random.seed(3)
        prepared(lambda: Digits(data_dir=str(tmp_path)))
        drawn.append((random.random(), np.random.random()))
    assert drawn[0] == drawn[1]
