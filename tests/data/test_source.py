"""A source's batches are a function of seed and position, whatever they are made from."""

import gc
import itertools
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data import Source, batches
from tfloss.data.permutation import seeds, shuffled
from tfloss.errors import DataError

INFINITE = int(tf.data.INFINITE_CARDINALITY)


class Sequence:
    """n items, one at a time."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        if not 0 <= index < self.n:
            raise IndexError(index)
        return {"x": np.int64(index), "name": f"n{index}", "y": (np.full(2, index, np.float32),)}


class Batched(Sequence):
    """The same, many at a time."""

    def __init__(self, n: int):
        super().__init__(n)
        self.asked = []

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return [self[index] for index in indices]


class Ragged(Sequence):
    """Items of different shapes, as their spec says."""

    element_spec = {"x": tf.TensorSpec([], tf.int64), "row": tf.TensorSpec([None], tf.int64)}

    def __getitem__(self, index: int):
        return {"x": np.int64(index), "row": np.arange(index)}


def arrays(n: int):
    x = np.arange(n)
    names = np.array([f"n{i}" for i in x])
    return {"x": x, "name": names, "y": (np.stack([x, x], 1).astype(np.float32),)}


KINDS = {"arrays": arrays, "sequence": Sequence, "batched": Batched}


def noisy(example, seed):
    """An augmentation that shows its seed."""
    return {**example, "noise": tf.random.stateless_uniform([], seed)}


def mixed(batch, seed):
    """An augmentation of a batch that mixes its examples."""
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(batch["x"])[0]), seed)
    return {**batch, "partner": tf.gather(batch["x"], order)}


def read(dataset) -> list:
    """Its batches, without waiting for the autotuner's thread to end."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return list(dataset.with_options(options).as_numpy_iterator())


def numbers(dataset) -> list[list[int]]:
    return [batch["x"].tolist() for batch in read(dataset)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def taken(dataset, number: int) -> list:
    return read(dataset.take(number))


# The order


@pytest.mark.parametrize("kind", KINDS)
def test_without_shuffling_batches_cross_the_ends_of_epochs(kind):
    source = Source(KINDS[kind](5), batch_size=3, shuffle=False)
    found = taken(source.dataset(), 4)
    assert [batch["x"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert found[1]["name"].tolist() == [b"n3", b"n4", b"n0"]
    assert found[1]["y"][0].tolist() == [[3, 3], [4, 4], [0, 0]]
    assert numbers(source.dataset(2).take(1)) == [[1, 2, 3]]


def test_with_epochs_the_last_batch_is_smaller_or_dropped():
    data = {"x": np.arange(5)}
    source = Source(data, batch_size=4, shuffle=False, epochs=2)
    assert numbers(source.dataset()) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]
    assert source.element_spec["x"].shape.as_list() == [None]
    source = Source(data, batch_size=4, shuffle=False, epochs=2, drop_remainder=True)
    assert numbers(source.dataset()) == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert source.element_spec["x"].shape.as_list() == [4]
    source = Source(data, batch_size=5, shuffle=False, epochs=2)
    assert source.element_spec["x"].shape.as_list() == [5]
    assert numbers(Source(data, batch_size=99, shuffle=False, epochs=1).dataset()) == [
        [0, 1, 2, 3, 4]
    ]
    source = Source(data, batch_size=12, shuffle=False)  # longer than an epoch
    assert numbers(source.dataset(1).take(1)) == [[2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_batches_follow_the_permutation(kind):
    source = Source(KINDS[kind](7), batch_size=4, seed=3)
    order = shuffled(tf.range(28, dtype=tf.int64), 7, 3).numpy()
    assert numbers(source.dataset().take(7)) == order.reshape(7, 4).tolist()


@pytest.mark.parametrize("length", [1, 3, 1437])
@pytest.mark.parametrize("seed", [0, 12])
def test_every_example_comes_once_an_epoch_and_epochs_differ(length, seed):
    source = Source({"x": np.arange(length)}, batch_size=8, seed=seed, epochs=3)
    order = np.array(list(itertools.chain(*numbers(source.dataset())))).reshape(3, length)
    np.testing.assert_array_equal(np.sort(order, axis=1), [np.arange(length)] * 3)
    if length >= 10:
        assert len({epoch.tobytes() for epoch in order}) == 3
        other = Source({"x": np.arange(length)}, batch_size=8, seed=seed + 1, epochs=3)
        assert numbers(other.dataset()) != numbers(source.dataset())


# Any position


@pytest.mark.parametrize("kind", ["arrays", "batched"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_map": mixed, "epochs": 3},
        {"map": noisy, "epochs": 3, "drop_remainder": True},
        {"map": noisy, "batch_map": mixed},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_starting_at_k_is_skipping_k(kind, options):
    source = Source(KINDS[kind](11), batch_size=4, seed=1, **options)
    number = 40 if source.cardinality == INFINITE else source.cardinality
    whole = taken(source.dataset(), number)
    assert len(whole) == number
    for start in (3, 8):
        dataset = source.dataset(start)
        assert dataset.element_spec == source.element_spec
        assert_same(taken(dataset, number - start), whole[start:])
        if source.cardinality != INFINITE:
            assert int(dataset.cardinality()) == number - start


def test_starting_in_any_piece_of_the_computed_order():
    source = Source({"x": np.arange(10_007)}, batch_size=32)
    whole = numbers(source.dataset().take(400))
    for start in (127, 129, 320):
        assert numbers(source.dataset(start).take(400 - start)) == whole[start:]


def test_cardinality_counts_the_remaining_batches():
    data = {"x": np.arange(10)}
    endless = Source(data, batch_size=4)
    assert endless.cardinality == INFINITE == int(endless.dataset(5).cardinality())
    assert endless.steps_per_epoch == 2.5 and len(endless) == 10
    for options, number in (({}, 8), ({"drop_remainder": True}, 7)):
        source = Source(data, batch_size=4, epochs=3, **options)
        assert source.cardinality == number
        for start in (1, 7, 8, 100):
            dataset = source.dataset(start)
            assert int(dataset.cardinality()) == max(0, number - start)
            assert len(read(dataset)) == max(0, number - start)
            assert dataset.element_spec == source.element_spec


def test_a_distant_start_takes_the_same_time():
    source = Source(arrays(1437), batch_size=32, map=noisy)

    def seconds(start: int) -> float:
        began = time.perf_counter()
        next(iter(source.dataset(start)))
        return time.perf_counter() - began

    seconds(0)
    near, far = zip(*((seconds(0), seconds(10**9)) for _ in range(5)), strict=True)
    assert min(far) < 3 * min(near)


def test_threads_do_not_change_the_order():
    for options in ({"map": noisy, "batch_map": mixed}, {}):
        found = [
            taken(Source(kind, batch_size=8, num_parallel_calls=calls, **options).dataset(), 20)
            for kind in (arrays(50), Sequence(50))
            for calls in (None, 8)
        ]
        for other in found[1:]:
            assert_same(other, found[0])


# Parts of batches


@pytest.mark.parametrize(
    "shards, options",
    [(3, {}), (5, {}), (5, {"map": noisy}), (3, {"map": noisy, "batch_map": mixed})],
)
def test_shards_together_are_the_batch(shards, options):
    kinds = ((Sequence, 2),) if options else ((arrays, None), (Sequence, 2))
    for kind, epochs in kinds:
        source = Source(kind(11), batch_size=4, epochs=epochs, **options)
        whole = taken(source.dataset(2), 4)
        parts = [taken(source.dataset(2, shard=shard, shards=shards), 4) for shard in range(shards)]
        for step, batch in enumerate(whole):
            size = len(batch["x"])
            for shard in range(shards):
                low, high = batches.split_bounds(size, shards, shard)
                assert len(parts[shard][step]["x"]) == high - low
            joined = tf.nest.map_structure(
                lambda *leaves: np.concatenate(leaves), *[part[step] for part in parts]
            )
            tf.nest.map_structure(np.testing.assert_array_equal, joined, batch)
        assert {len(part) for part in parts} == {len(whole)}


def test_the_cardinality_of_a_shard_is_that_of_the_source():
    for epochs, number in ((None, INFINITE), (2, 4)):
        source = Source({"x": np.arange(11)}, batch_size=4, epochs=epochs)
        for shard in range(5):
            dataset = source.dataset(2, shard=shard, shards=5)
            assert int(dataset.cardinality()) == number
            assert number == INFINITE or len(read(dataset)) == number
    assert source.dataset(shard=1, shards=2).element_spec["x"].shape.as_list() == [None]
    endless = Source({"x": np.arange(11)}, batch_size=4)
    assert endless.dataset(shard=1, shards=2).element_spec["x"].shape.as_list() == [2]


# map and batch_map


def test_seeds_depend_on_the_position():
    source = Source({"x": np.arange(5)}, batch_size=4, seed=9, map=lambda e, s: {**e, "seed": s})
    found = taken(source.dataset(2), 3)
    positions = tf.range(8, 20, dtype=tf.int64)
    expected = seeds(positions, 9).numpy().reshape(3, 4, 2)
    np.testing.assert_array_equal([batch["seed"] for batch in found], expected)


def test_augmentation_differs_between_epochs_and_repeats_after_a_seek():
    source = Source({"x": np.arange(8)}, batch_size=4, map=noisy, batch_map=mixed)
    whole = taken(source.dataset(), 40)
    of_first = [b["noise"][b["x"].tolist().index(0)] for b in whole if 0 in b["x"]]
    assert len(of_first) == 20 and len(set(of_first)) == 20
    assert len({b["partner"].tobytes() for b in whole}) > 20
    assert_same(taken(source.dataset(17), 5), whole[17:22])
    other = Source({"x": np.arange(8)}, batch_size=4, seed=1, map=noisy)
    assert not {n for b in taken(other.dataset(), 20) for n in b["noise"]} & set(of_first)


def test_functions_take_a_seed_or_not_by_their_signature():
    data = (np.arange(4), np.arange(4) * 10)  # a tuple is one argument
    for function, expected in (
        (lambda pair: pair[0] + pair[1], [0, 11, 22, 33]),
        (lambda pair, factor=2: pair[0] * factor, [0, 2, 4, 6]),
        (lambda pair, seed: pair[1] + tf.cast(seed[0] * 0, tf.int64), [0, 10, 20, 30]),
    ):
        for name in ("map", "batch_map"):
            source = Source(data, batch_size=4, shuffle=False, **{name: function})
            assert next(iter(source.dataset())).numpy().tolist() == expected
    layer = tf.keras.layers.Rescaling(2.0)
    source = Source(np.ones([4, 3], np.float32), batch_size=2, batch_map=layer)
    assert next(iter(source.dataset())).numpy().tolist() == [[2, 2, 2]] * 2
    pairs = Source(data, batch_size=4, shuffle=False, batch_map=lambda pair: (pair[1], pair[0]))
    first = next(iter(pairs.dataset(shard=1, shards=2)))
    assert [x.numpy().tolist() for x in first] == [[20, 30], [2, 3]]


def test_a_map_may_use_python_control_flow():
    def halves(example):
        if example["x"] % 2 == 0:  # a tensor: autograph makes a tf.cond of it
            x = example["x"] // 2
        else:
            x = -example["x"]
        return {"x": x}

    for kind in KINDS.values():
        source = Source(kind(4), batch_size=4, shuffle=False, map=halves, batch_map=lambda b: b)
        assert numbers(source.dataset().take(1)) == [[0, -1, 1, -3]]


@pytest.mark.parametrize("name", ["map", "batch_map"])
@pytest.mark.parametrize(
    "bad",
    [lambda: 0, lambda a, b, c: 0, lambda a, *, key: 0, "resize"],
    ids=["none", "three", "by name", "no function"],
)
def test_other_signatures_are_refused(name, bad):
    with pytest.raises(DataError, match=rf"^{name} must be a function of \((example|batch)\) or"):
        Source(arrays(4), batch_size=2, **{name: bad})


# Examples


def test_items_whose_shapes_differ_need_a_spec_and_a_map():
    def padded(example):
        row = example["row"]
        return {"x": example["x"], "row": tf.pad(row, [[0, 6 - tf.shape(row)[0]]])}

    source = Source(Ragged(6), batch_size=3, shuffle=False, map=padded)
    found = next(iter(source.dataset(1)))
    assert found["row"].numpy().tolist() == [
        [0, 1, 2, 0, 0, 0],
        [0, 1, 2, 3, 0, 0],
        [0, 1, 2, 3, 4, 0],
    ]
    with pytest.raises(DataError, match=r"Item 1\['row'\] is int64 \[1\], but should be int64 \(0"):
        Source([{"row": np.arange(0)}, {"row": np.arange(1)}], batch_size=1)


def test_getitems_is_asked_for_complete_batches():
    items = Batched(6)
    next(iter(Source(items, batch_size=4, shuffle=False, num_parallel_calls=None).dataset()))
    assert items.asked[0] == [0, 1, 2, 3]


def test_bytes_and_lists_are_values():
    items = [{"raw": b"a\0", "row": [1, 2]}, {"raw": b"\0", "row": [3, 4]}]
    found = next(iter(Source(items, batch_size=2, shuffle=False).dataset()))
    assert found["raw"].numpy().tolist() == [b"a\0", b"\0"]
    assert found["row"].numpy().tolist() == [[1, 2], [3, 4]]
    found = next(iter(Source({"x": [5, 6, 7]}, batch_size=3, shuffle=False).dataset()))
    assert found["x"].numpy().tolist() == [5, 6, 7]


def test_a_data_set_outlives_its_source():
    iterator = iter(Source(Sequence(5), batch_size=2, map=noisy).dataset())
    gc.collect()
    assert next(iterator)["x"].shape == [2]


def test_arrays_are_copied_once():
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB

    array = np.ones([1000, 100_000], np.uint8)  # 95 MiB
    source = Source({"x": array}, batch_size=2, map=lambda e: {"x": e["x"] + 1}, epochs=20)
    before = peak()
    iterators = [iter(source.dataset(start)) for start in range(5)]
    assert all(next(iterator)["x"].shape == [2, 100_000] for iterator in iterators)
    assert peak() - before < 95


def test_identity_is_json_and_names_what_the_order_depends_on():
    source = Source(arrays(10), batch_size=4, seed=3, epochs=2, drop_remainder=True)
    assert json.loads(json.dumps(source.identity())) == {
        "examples": 10,
        "batch_size": 4,
        "seed": 3,
        "shuffle": True,
        "epochs": 2,
        "drop_remainder": True,
    }
    assert (
        source.identity()
        == Source(
            Sequence(10), batch_size=np.int64(4), seed=3, epochs=2, drop_remainder=True, map=noisy
        ).identity()
    )


# What is refused


@pytest.mark.parametrize(
    "examples, options, message",
    [
        ({"x": np.ones(3), "y": (np.ones(4),)}, {}, r"\['x'\] 3, \['y'\]\[0\] 4"),
        ({"x": np.ones(3), "k": np.float32(1)}, {}, r"\['x'\] 3, \['k'\] none"),
        ({}, {}, "no array"),
        ({"x": np.ones((0, 3))}, {}, "empty"),
        ([], {}, "empty"),
        (arrays(3), {"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        (arrays(3), {"batch_size": 1.5}, "batch_size must be an integer"),
        (arrays(3), {"seed": 0.5}, "seed must be an integer; got 0.5"),
        (arrays(3), {"seed": None}, "seed must be an integer"),
        (arrays(3), {"seed": True}, "seed must be an integer"),
        (arrays(3), {"epochs": 0}, "epochs must be an integer of at least 1"),
        (arrays(3), {"batch_size": 4, "epochs": 1, "drop_remainder": True}, "No batch is left"),
        (
            [{"x": 1}, {"y": 1}],
            {},
            r"Item 1 has another structure .* \['y'\], the first has \['x'\]",
        ),
        ([{"x": 1}, {"x": 1.5}], {}, r"Item 1\['x'\] is float64 \[\], but should be int64"),
        (iter([1]), {}, "got list_iterator"),
        (tf.data.Dataset.range(3), {}, "Pass it to the trainer directly"),
    ],
)
def test_bad_input_is_refused_at_once(examples, options, message):
    with pytest.raises(DataError, match=message):
        Source(examples, **{"batch_size": 1, **options})


def test_an_item_that_differs_is_named_when_it_is_read():
    items = [{"x": 1}, {"x": 2.5}, {"x": 3}]
    with pytest.raises(tf.errors.OpError, match=r"Item 1\['x'\] is float64"):
        list(Source(items, batch_size=3, epochs=1).dataset())


def test_wrong_positions_are_refused():
    source = Source(arrays(3), batch_size=1)
    for arguments in ({"start": -1}, {"shard": 2, "shards": 2}, {"shards": 0}, {"shard": -1}):
        with pytest.raises(DataError, match="must be"):
            source.dataset(**arguments)


def test_importing_the_package_is_light():
    code = "import sys, tfloss.data; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
