"""Every batch comes once and in order, whatever its size; what can't be stacked is named."""

import re
import tempfile
import time

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.stacked_batches import BatchStacker, raised_by_data, reason_not_to_stack


def _seen(blocks, most=7):
    """Each step's batches, as lists of numbers, and how many came in blocks."""
    steps, stacked = [], 0
    while True:
        try:
            part = blocks.take(most)
        except StopIteration:
            return steps, stacked
        if part.block is None:
            steps.append([batch.numpy().tolist() for batch in part.batches])
            continue
        stacked += part.steps
        block = part.block.numpy()
        many = blocks._batches_per_step
        for i in range(part.steps):
            at = part.start + i * many
            steps.append(block[at : at + many].tolist())


def _expected(dataset, per_step):
    batches = [batch.tolist() for batch in dataset.as_numpy_iterator()]
    whole = len(batches) // per_step * per_step
    return [batches[i : i + per_step] for i in range(0, whole, per_step)]


@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize(
    "dataset",
    [
        tf.data.Dataset.range(64).batch(4, drop_remainder=True),
        tf.data.Dataset.range(30).batch(4).repeat(3),  # a short batch in the middle, twice
        tf.data.Dataset.range(2).batch(4),
        tf.data.Dataset.range(1000).batch(2),  # several blocks
    ],
)
def test_every_batch_once_and_in_order(dataset, per_step):
    blocks = BatchStacker(iter(dataset), per_step)
    blocks.reads_ahead = True
    steps, _ = _seen(blocks)
    assert steps == _expected(dataset, per_step)


def test_batches_of_one_size_come_in_blocks():
    blocks = BatchStacker(iter(tf.data.Dataset.range(1000).batch(2)))
    blocks.reads_ahead = True
    assert _seen(blocks)[1] == 500


def test_what_is_known_to_be_endless_is_pulled_without_asking_for_the_end():
    dataset = tf.data.Dataset.range(10).repeat().batch(5, drop_remainder=True)
    blocks = BatchStacker(iter(dataset), endless=True)
    blocks.reads_ahead = True
    found = np.concatenate([blocks.take_step()[0] for _ in range(500)])
    assert found.tolist() == list(range(10)) * 250


def test_not_ahead_no_more_is_taken_than_asked_for():
    iterator = iter(tf.data.Dataset.range(100).batch(2))
    blocks = BatchStacker(iterator)
    part = blocks.take(5)
    assert part.steps == 5 and part.block.numpy()[:5].tolist() == [
        [2 * i, 2 * i + 1] for i in range(5)
    ]
    assert not blocks.has_pending()
    assert next(iterator).numpy().tolist() == [10, 11]


def test_what_is_given_back_comes_again():
    blocks = BatchStacker(iter(tf.data.Dataset.range(100).batch(2)), batches_per_step=2)
    part = blocks.take(3)
    blocks.give_back(part)
    blocks.reads_ahead = True
    assert _seen(blocks)[0] == _expected(tf.data.Dataset.range(100).batch(2), 2)


def test_no_data_at_all():
    blocks = BatchStacker(iter(tf.data.Dataset.range(0).batch(2)))
    assert not blocks.has_pending()
    for ahead in (False, True):
        blocks.reads_ahead = ahead
        for call in (blocks.take_step, lambda: blocks.take(3)):
            with pytest.raises(StopIteration):
                call()


def test_structures_stay():
    data = tf.data.Dataset.from_tensor_slices(
        {"a": [1.0, 2.0], "b": ([[1, 2], [3, 4]], [True, False])}
    )
    blocks = BatchStacker(iter(data.repeat().batch(2, drop_remainder=True)))
    blocks.reads_ahead = True
    blocks.take_step()
    (batch,) = blocks.take_step()
    assert batch["a"].numpy().tolist() == [1.0, 2.0]
    assert batch["b"][0].numpy().tolist() == [[1, 2], [3, 4]]
    assert batch["b"][1].numpy().tolist() == [True, False]


def test_the_size_of_a_block_is_bounded_in_bytes():
    large = tf.data.Dataset.from_tensors(tf.zeros([2**20])).repeat()  # 4 MiB
    for per_step, steps in ((1, 6), (3, 2)):
        blocks = BatchStacker(iter(large), per_step)
        blocks.take_step()
        assert blocks.steps == steps


@pytest.mark.parametrize(("rhythm", "first", "size"), [(30, 7, 390), (100, 0, 400), (500, 3, 400)])
def test_blocks_begin_where_calls_are_cut(rhythm, first, size):
    """If they can: 500 steps don't fit."""
    done = first
    blocks = BatchStacker(
        iter(tf.data.Dataset.range(10**6).repeat()),
        endless=True,
        alignment=rhythm,
        current_step=lambda: done,
    )
    blocks.reads_ahead = True
    calls = []
    while done < 2400:
        steps = blocks.take(min(rhythm - done % rhythm, 64 if done < 100 else 1000)).steps
        calls.append(steps)
        done += steps
    assert blocks.steps == size
    whole = [steps for steps in calls if steps == rhythm]
    assert len(whole) >= (2400 - 2 * rhythm) // rhythm if rhythm <= 400 else not whole


def test_the_first_batch_is_told_of_before_more_is_read():
    told = []
    iterator = iter(tf.data.Dataset.range(10))
    blocks = BatchStacker(iterator, on_first_batch=lambda: told.append(int(next(iterator))))
    blocks.reads_ahead = True
    assert int(blocks.take_step()[0]) == 0 and told == [1]
    assert [int(blocks.take_step()[0]) for _ in range(3)] == [2, 3, 4] and told == [1]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"x": tf.TensorSpec([None, 3])}, None),
        ((tf.TensorSpec([8, 3]), tf.TensorSpec([], tf.int64)), None),
        ({"x": tf.TensorSpec([None, None, 3])}, r"shape \(None, None, 3\)"),
        ({"x": tf.TensorSpec([8], tf.string)}, "strings"),
        ({"x": tf.RaggedTensorSpec([8, None])}, "RaggedTensor"),
    ],
)
def test_what_can_not_be_stacked(spec, reason):
    found = reason_not_to_stack(spec)
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found)


def test_slow_batches_come_in_shorter_blocks():
    def late(i):
        return tf.numpy_function(lambda j: (time.sleep(0.05), j)[1], [i], tf.int64)

    data = tf.data.Dataset.range(60).map(lambda i: tf.ensure_shape(late(i), []))
    blocks = BatchStacker(iter(data), 2)
    blocks.reads_ahead = True
    found, parts = [], 0
    with pytest.raises(StopIteration):
        while True:
            began = time.monotonic()
            part = blocks.take(100)
            assert time.monotonic() - began < 1.0
            if part.block is None:
                found += [int(x) for x in part.batches]
            else:
                found += part.block.numpy()[part.start : part.start + 2 * part.steps].tolist()
            parts += 1
    assert found == list(range(60))
    assert parts > 4


@pytest.mark.parametrize("quick", [True, False])
def test_endless_data_of_one_shape(quick):
    """Quick or slow, it is pulled in another way; the batches are the same."""

    def element(i):
        slow = tf.numpy_function(lambda j: (time.sleep(0.005), j)[1], [i], tf.int64)
        return tf.ensure_shape(slow, [])

    data = tf.data.Dataset.range(90).repeat()
    data = (data if quick else data.map(element)).map(lambda i: {"i": i}).prefetch(2)
    blocks = BatchStacker(iter(data), 2, endless=True)
    blocks.reads_ahead = True
    found = []
    for _ in range(5):
        part = blocks.take(1000)
        assert part.block is not None
        found += part.block["i"].numpy()[part.start : part.start + 2 * part.steps].tolist()
    assert found == [i % 90 for i in range(len(found))]
    assert (len(found) > 600) == quick


def test_data_that_are_slow_at_first_come_in_whole_blocks_later(monkeypatch):
    """The first block is cut short; what is left of it comes next, then whole ones, aligned."""
    monkeypatch.setattr("tfloss.data.stacked_batches.MAX_BLOCK_STEPS", 100)

    def late(i):
        return tf.numpy_function(lambda j: (time.sleep(0.05 * (j < 20)), j)[1], [i], tf.int64)

    data = tf.data.Dataset.range(10**6).map(lambda i: tf.ensure_shape(late(i), [])).repeat()
    done = 0
    blocks = BatchStacker(iter(data), endless=True, alignment=50, current_step=lambda: done)
    blocks.reads_ahead = True
    calls, found = [], []
    while done < 700:
        part = blocks.take(1000)
        found += _values(part).tolist() if part.block is not None else [int(part.batches[0])]
        done += part.steps or 1
        calls.append(done)
    assert found == list(range(done))
    assert calls[0] == 1 and calls[1] < 30  # the first batch comes by itself
    first_whole = min(end for end in calls if end % 100 == 0)
    assert first_whole <= 200
    assert [end for end in calls if end > first_whole] == list(range(first_whole + 100, 701, 100))


@pytest.mark.parametrize("quick", [True, False])
def test_held_the_iterator_rests_where_its_batches_were_pulled_to(quick):
    def make():
        data = tf.data.Dataset.range(100_000).shuffle(50, seed=1)
        return data.repeat() if quick else data

    data = make()
    iterator = iter(data)
    blocks = BatchStacker(iterator, endless=quick)
    blocks.reads_ahead = True
    taken = [int(one) for _ in range(3) for one in _values(blocks.take(70))]
    for _ in range(2):
        with blocks.paused() as waiting:
            time.sleep(0.05)  # nobody pulls
            again = iter(data)
            _move(iterator, again)
            rest = [int(next(again)) for _ in range(5)]
        upcoming = [int(one) for one in _exactly(blocks, waiting + 5)]
        assert upcoming[-5:] == rest
        taken += upcoming
    fresh = iter(make())
    assert taken == [int(next(fresh)) for _ in taken]


@pytest.mark.parametrize("ahead", [True, False])
def test_the_size_that_most_batches_have_is_that_of_blocks(ahead):
    """Though the first one is of another; the order stays."""
    numbers = tf.data.Dataset.range(3).batch(3).concatenate(tf.data.Dataset.range(3, 1003).batch(2))
    blocks = BatchStacker(iter(numbers))
    blocks.reads_ahead = ahead
    steps, stacked = _seen(blocks)
    assert steps == _expected(numbers, 1)
    assert stacked > 480


def test_sizes_that_take_turns_do_not_make_blocks_of_another_size_each_time(monkeypatch):
    made = []
    monkeypatch.setattr(BatchStacker, "_stack_like", _counting(BatchStacker._stack_like, made))
    sizes = np.array([1, *[2, 2, 2, 2, 1, 1, 1, 1] * 100])
    starts = np.cumsum(sizes) - sizes
    data = tf.data.Dataset.from_tensor_slices((starts, sizes)).map(lambda a, n: tf.range(a, a + n))
    for per_step in (1, 3):
        blocks = BatchStacker(iter(data), per_step)
        blocks.reads_ahead = True
        assert _seen(blocks)[0] == _expected(data, per_step)
        assert len(made) <= 2
        made.clear()


def _counting(method, made):
    def counted(self, batch):
        made.append(batch)
        method(self, batch)

    return counted


def _corrupt(bad, first=0):
    """Numbers, some of which can't be read."""

    def read(i):
        is_bad = tf.reduce_any([tf.equal(i, one) for one in bad])
        return tf.strings.to_number(tf.where(is_bad, "corrupt", tf.strings.as_string(i)), tf.int64)

    return tf.data.Dataset.range(first, 1000).map(read)


@pytest.mark.parametrize("per_step", [1, 3])
@pytest.mark.parametrize("bad", [(0,), (5, 6), (100, 130), (600, 999)])
def test_an_error_comes_in_its_place(bad, per_step):
    """It does not take batches with it that were read ahead before or after it.

    But those of the step that it is in.
    """
    given = lost = 0

    def back(count):
        return lambda: iter(_corrupt(bad, given + count + lost))

    blocks = BatchStacker(iter(_corrupt(bad)), per_step, rewind=back)
    blocks.reads_ahead = True
    found, errors = [], []
    while True:
        try:
            part = blocks.take(50)
        except tf.errors.InvalidArgumentError as error:
            assert blocks.failed and "corrupt" in str(error)
            errors.append(len(found) + blocks._waiting() + lost)
            lost = errors[-1] + 1 - given
            assert blocks.drop_step() and not blocks.failed
            continue
        except StopIteration:
            break
        many = part.steps * per_step
        new = part.batches if part.block is None else part.block[part.start : part.start + many]
        found += [int(one) for one in new]
        given = len(found)
    assert errors == list(bad)
    expected, step = [], []
    for i in range(1000):
        step = [] if i in bad else [*step, i]
        if len(step) == per_step:
            expected, step = expected + step, []
    assert found == expected


def test_an_error_that_does_not_come_again_is_raised_all_the_same():
    blocks = BatchStacker(
        iter(_corrupt([100])), rewind=lambda count: lambda: iter(_corrupt([], 1 + count))
    )
    blocks.reads_ahead = True
    found = []
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        while True:
            found.extend(_values(blocks.take(50)))
    assert found == list(range(402))
    assert _values(blocks.take(3)).tolist() == [402, 403, 404]


def test_where_nothing_can_go_back_the_error_comes_early():
    blocks = BatchStacker(iter(_corrupt([100])))
    blocks.reads_ahead = True
    assert len(_values(blocks.take(50))) == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        blocks.take(50)
    assert blocks.failed
    assert not blocks.drop_step()
    assert _values(blocks.take(3)).tolist() == [101, 102, 103]


def test_an_error_that_is_met_while_pulling_is_to_rest_leaves_it_going_on():
    """Where nothing can go back."""
    blocks = BatchStacker(iter(_corrupt([600])))
    blocks.reads_ahead = True
    assert len(_exactly(blocks, 10)) == 10
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"), blocks.paused():
        pass
    assert [int(one) for one in _exactly(blocks, 392)] == [*range(10, 401), 601]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("[[{{node StringToNumber}}]]\n\t [[while/body/_1/while/IteratorGetNext]]", True),
        ("[[{{node IteratorGetNext_2}}]]", True),
        ("[[{{node MultiDeviceIteratorGetNextFromShard}}]]", True),
        ("[[{{node net/embedding_lookup}}]]\n\t [[IteratorGetNext/_4]]", False),
        ("[[{{node net/embedding_lookup}}]]", False),
    ],
)
def test_whether_the_data_raised_an_error_in_a_graph(named, expected):
    assert raised_by_data(iter(()), tf.errors.InvalidArgumentError(None, None, named)) == expected


def _values(part):
    if part.block is None:
        return [one.numpy() for one in part.batches]
    return part.block.numpy()[part.start : part.start + part.steps]


def _exactly(blocks, count):
    found = []
    while len(found) < count:
        found.extend(_values(blocks.take(count - len(found))))
    return found


def _move(source, target):
    """Brings one iterator to where another is."""
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(iterator=source).write(f"{folder}/iterator")
        tf.train.Checkpoint(iterator=target).read(path).assert_consumed()
