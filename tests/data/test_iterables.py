"""What can only be read in order is read pass after pass, with one order for each pass."""

import contextlib
import multiprocessing
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.iterables import is_iterable, iterated, pass_length
from tfloss.errors import DataError


def test_a_generator_function_is_called_for_each_pass():
    calls = []

    def numbers():
        calls.append(1)
        for n in range(3):
            yield {"x": np.full([2 if n < 2 else 1, n + 1], float(n))}

    data = iterated(numbers, training=True, seed=0)
    assert data.element_spec == {"x": tf.TensorSpec([None, None], tf.float32)}
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY and calls == [1]
    assert [int(one["x"][0, 0]) for one in data.take(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [len(one["x"]) for one in iterated(numbers, training=False, seed=0)] == [2, 2, 1]
    assert is_iterable(numbers) and not is_iterable(numbers()) and pass_length(numbers) is None


def test_a_batch_that_differs_and_an_empty_pass_are_named():
    passes = iter([3, 3, 0])

    def fewer():
        yield from (np.zeros([1]) for _ in range(next(passes)))

    with pytest.raises(tf.errors.OpError, match="fewer yields no batch in pass 1"):
        list(iterated(fewer, training=True, seed=0))

    def wider():
        yield from (np.zeros([1, n]) for n in (2, 2, 3))

    with pytest.raises(tf.errors.OpError, match=r"Batch 2 of wider is float32 \[1, 3\]"):
        list(iterated(wider, training=False, seed=0))

    def nothing():
        yield from ()

    with pytest.raises(DataError, match="nothing yields no batch"):
        iterated(nothing, training=False, seed=0)


class DataLoader:
    """Stands in for that of torch, which may not be installed."""

    __module__ = "torch.utils.data.dataloader"

    def __init__(self, num_workers, method):
        self.num_workers = num_workers
        self.multiprocessing_context = method and multiprocessing.get_context(method)


@pytest.mark.parametrize(
    ("workers", "method", "warns"),
    [(2, "fork", True), (2, "forkserver", False), (2, "spawn", False), (0, "fork", False)],
)
def test_workers_that_are_forks_are_warned_of(workers, method, warns):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with contextlib.suppress(KeyError, TypeError):  # the stand-in has no batches
            iterated(DataLoader(workers, method), training=False, seed=0)
    texts = [str(one.message) for one in found]
    assert any("num_workers=2) forks this process" in text for text in texts) == warns


def test_a_loader_draws_from_a_state_of_its_own():
    torch = pytest.importorskip("torch")

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"n": index, "noise": torch.rand(1)}

    def read(seed, global_seed):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        loader = torch.utils.data.DataLoader(Noisy(), batch_size=3, shuffle=True, drop_last=True)
        data = iterated(loader, training=True, seed=seed)
        assert data.element_spec["noise"].shape == [3, 1] and pass_length(loader) == 2
        found = [(one["n"].numpy().tolist(), one["noise"].numpy().tolist()) for one in data.take(6)]
        assert torch.equal(before, torch.get_rng_state())
        return found

    found = read(1, 5)
    assert found == read(1, 6) and found != read(2, 5)
    passes = [found[i][0] + found[i + 1][0] for i in (0, 2, 4)]
    assert all(sorted(one) == list(range(6)) for one in passes) and passes[0] != passes[1]
