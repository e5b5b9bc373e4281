"""Every batch comes once and in order, whatever its shape and whatever fails."""

import tempfile
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.block_size import BlockSize
from tfloss.data.stacked_batches import BatchStacker, raised_by_data


@pytest.fixture
def full_blocks(monkeypatch):
    """No block is cut short by the clock, however busy the machine is."""
    monkeypatch.setattr("tfloss.data.pull_block.MAX_SECONDS", float("inf"))


def _seen(stacker, most=7):
    """Each step's batches, as lists of numbers, and how many came in blocks."""
    steps, stacked = [], 0
    while True:
        try:
            inputs = stacker.take(most)
        except StopIteration:
            return steps, stacked
        if inputs.block is None:
            steps.append([batch.numpy().tolist() for batch in inputs.batches])
            continue
        stacked += inputs.steps
        block = inputs.block.numpy()
        many = stacker._batches_per_step
        for i in range(inputs.steps):
            at = inputs.start + i * many
            steps.append(block[at : at + many].tolist())


def _expected(dataset, batches_per_step):
    batches = [batch.tolist() for batch in dataset.as_numpy_iterator()]
    whole = len(batches) // batches_per_step * batches_per_step
    return [batches[i : i + batches_per_step] for i in range(0, whole, batches_per_step)]


@pytest.mark.parametrize("batches_per_step", [1, 2, 3])
@pytest.mark.parametrize(
    "dataset",
    [
        tf.data.Dataset.range(64).batch(4, drop_remainder=True),
        tf.data.Dataset.range(30).batch(4).repeat(3),  # a short batch in the middle, twice
        tf.data.Dataset.range(2).batch(4),
        tf.data.Dataset.range(1000).batch(2),  # several blocks
    ],
)
def test_every_batch_once_and_in_order(dataset, batches_per_step):
    stacker = BatchStacker(iter(dataset), batches_per_step)
    stacker.reads_ahead = True
    steps, _ = _seen(stacker)
    assert steps == _expected(dataset, batches_per_step)


def test_batches_of_one_size_come_in_blocks(full_blocks):
    stacker = BatchStacker(iter(tf.data.Dataset.range(1000).batch(2)))
    stacker.reads_ahead = True
    assert _seen(stacker)[1] == 500


def test_endless_data_come_in_order():
    dataset = tf.data.Dataset.range(10).repeat().batch(5, drop_remainder=True)
    stacker = BatchStacker(iter(dataset), endless=True)
    stacker.reads_ahead = True
    found = np.concatenate([stacker.take_step()[0] for _ in range(500)])
    assert found.tolist() == list(range(10)) * 250


def test_without_reading_ahead_no_more_is_taken_than_asked_for():
    iterator = iter(tf.data.Dataset.range(100).batch(2))
    stacker = BatchStacker(iterator)
    inputs = stacker.take(5)
    assert inputs.steps == 5 and inputs.block.numpy()[:5].tolist() == [
        [2 * i, 2 * i + 1] for i in range(5)
    ]
    assert not stacker.has_pending()
    assert next(iterator).numpy().tolist() == [10, 11]


def test_what_is_given_back_comes_again():
    stacker = BatchStacker(iter(tf.data.Dataset.range(100).batch(2)), batches_per_step=2)
    inputs = stacker.take(3)
    stacker.give_back(inputs)
    stacker.reads_ahead = True
    assert _seen(stacker)[0] == _expected(tf.data.Dataset.range(100).batch(2), 2)


def test_an_empty_data_set_ends_at_once():
    stacker = BatchStacker(iter(tf.data.Dataset.range(0).batch(2)))
    assert not stacker.has_pending()
    for ahead in (False, True):
        stacker.reads_ahead = ahead
        for call in (stacker.take_step, lambda: stacker.take(3)):
            with pytest.raises(StopIteration):
                call()


def test_batches_keep_their_structure():
    data = tf.data.Dataset.from_tensor_slices(
        {"a": [1.0, 2.0], "b": ([[1, 2], [3, 4]], [True, False])}
    )
    stacker = BatchStacker(iter(data.repeat().batch(2, drop_remainder=True)))
    stacker.reads_ahead = True
    stacker.take_step()
    (batch,) = stacker.take_step()
    assert batch["a"].numpy().tolist() == [1.0, 2.0]
    assert batch["b"][0].numpy().tolist() == [[1, 2], [3, 4]]
    assert batch["b"][1].numpy().tolist() == [True, False]


@pytest.mark.parametrize(
    ("alignment", "first", "size"), [(30, 7, 390), (100, 0, 400), (500, 3, 400)]
)
def test_blocks_begin_where_calls_are_cut(alignment, first, size, full_blocks):
    """If that many steps fit in a block; 500 don't."""
    done = first
    stacker = BatchStacker(
        iter(tf.data.Dataset.range(10**6).repeat()),
        endless=True,
        alignment=alignment,
        current_step=lambda: done,
    )
    stacker.reads_ahead = True
    calls = []
    while done < 2400:
        steps = stacker.take(min(alignment - done % alignment, 64 if done < 100 else 1000)).steps
        calls.append(steps)
        done += steps
    assert stacker.steps == size
    whole = [steps for steps in calls if steps == alignment]
    assert len(whole) >= (2400 - 2 * alignment) // alignment if alignment <= 400 else not whole


def test_on_first_batch_is_called_before_more_is_read():
    calls = []
    iterator = iter(tf.data.Dataset.range(10))
    stacker = BatchStacker(iterator, on_first_batch=lambda: calls.append(int(next(iterator))))
    stacker.reads_ahead = True
    assert int(stacker.take_step()[0]) == 0 and calls == [1]
    assert [int(stacker.take_step()[0]) for _ in range(3)] == [2, 3, 4] and calls == [1]


def test_slow_batches_come_in_shorter_blocks(data_clock):
    """A block ends with the first step that ends after more than a quarter of a second."""
    data = data_clock.slowed(tf.data.Dataset.range(60), lambda _: 1 / 16)
    stacker = BatchStacker(iter(data), 2)
    stacker.reads_ahead = True
    found, blocks = [], []
    with pytest.raises(StopIteration):
        while True:
            inputs = stacker.take(100)
            if inputs.block is None:
                found += [int(x) for x in inputs.batches]
            else:
                many = 2 * inputs.steps
                found += inputs.block.numpy()[inputs.start : inputs.start + many].tolist()
                blocks.append(many)
    assert found == list(range(60))
    assert blocks == [2] + [6] * 9 + [4]  # the first step comes by itself


@pytest.mark.parametrize("quick", [True, False])
def test_endless_data_of_one_shape_come_in_order_whether_fast_or_slow(quick, data_clock):
    """Fast and slow data are pulled by different code; the batches are the same."""
    data = tf.data.Dataset.range(90).repeat()
    data = data if quick else data_clock.slowed(data, lambda _: 0.005)
    stacker = BatchStacker(iter(data.map(lambda i: {"i": i}).prefetch(2)), 2, endless=True)
    stacker.reads_ahead = True
    found = []
    for _ in range(5):
        inputs = stacker.take(1000)
        assert inputs.block is not None
        found += inputs.block["i"].numpy()[inputs.start : inputs.start + 2 * inputs.steps].tolist()
    assert found == [i % 90 for i in range(len(found))]
    assert (len(found) > 600) == quick


def test_data_that_are_slow_at_first_come_in_full_blocks_later(monkeypatch, data_clock):
    """The first block is cut short. The rest of it comes next, then full ones, aligned."""
    monkeypatch.setattr("tfloss.data.block_size.MAX_BLOCK_STEPS", 100)
    numbers = tf.data.Dataset.range(10**6)
    data = data_clock.slowed(numbers, lambda i: (i < 20) / 16).repeat()
    done = 0
    stacker = BatchStacker(iter(data), endless=True, alignment=50, current_step=lambda: done)
    stacker.reads_ahead = True
    calls, found = [], []
    while done < 700:
        inputs = stacker.take(1000)
        found += _values(inputs).tolist() if inputs.block is not None else [int(inputs.batches[0])]
        done += inputs.steps or 1
        calls.append(done)
    assert found == list(range(done))
    # The first batch comes by itself.
    assert calls == [1, 6, 11, 16, 100, 200, 300, 400, 500, 600, 700]


@pytest.mark.parametrize("quick", [True, False])
def test_while_paused_the_iterator_stays_behind_the_batches_that_were_pulled(quick):
    def make():
        data = tf.data.Dataset.range(100_000).shuffle(50, seed=1)
        return data.repeat() if quick else data

    data = make()
    iterator = iter(data)
    stacker = BatchStacker(iterator, endless=quick)
    stacker.reads_ahead = True
    taken = [int(one) for _ in range(3) for one in _values(stacker.take(70))]
    for _ in range(2):
        with stacker.paused() as waiting:
            time.sleep(0.05)  # nothing may be pulled now
            again = iter(data)
            _move(iterator, again)
            rest = [int(next(again)) for _ in range(5)]
        upcoming = [int(one) for one in _exactly(stacker, waiting + 5)]
        assert upcoming[-5:] == rest
        taken += upcoming
    fresh = iter(make())
    assert taken == [int(next(fresh)) for _ in taken]


@pytest.mark.parametrize("ahead", [True, False])
def test_blocks_use_the_shape_of_most_batches(ahead, full_blocks):
    """Even if the first batch has another shape. The order stays."""
    numbers = tf.data.Dataset.range(3).batch(3).concatenate(tf.data.Dataset.range(3, 1003).batch(2))
    stacker = BatchStacker(iter(numbers))
    stacker.reads_ahead = ahead
    steps, stacked = _seen(stacker)
    assert steps == _expected(numbers, 1)
    assert stacked > 480


def test_alternating_shapes_do_not_change_the_blocks_each_time(monkeypatch):
    made = []
    monkeypatch.setattr(BlockSize, "adopt", _counting(BlockSize.adopt, made))
    sizes = np.array([1, *[2, 2, 2, 2, 1, 1, 1, 1] * 100])
    starts = np.cumsum(sizes) - sizes
    data = tf.data.Dataset.from_tensor_slices((starts, sizes)).map(lambda a, n: tf.range(a, a + n))
    for batches_per_step in (1, 3):
        stacker = BatchStacker(iter(data), batches_per_step)
        stacker.reads_ahead = True
        assert _seen(stacker)[0] == _expected(data, batches_per_step)
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


@pytest.mark.parametrize("batches_per_step", [1, 3])
@pytest.mark.parametrize("bad", [(0,), (5, 6), (100, 130), (600, 999)])
def test_an_error_is_raised_after_all_batches_before_it(bad, batches_per_step, full_blocks):
    """Of the batches that were read ahead, only the other ones of its step are lost."""
    given = lost = 0

    stacker = BatchStacker(iter(_corrupt(bad)), batches_per_step)
    stacker.reads_ahead = True
    found, errors = [], []
    while True:
        try:
            inputs = stacker.take(50)
        except tf.errors.InvalidArgumentError as error:
            assert stacker.failed and "corrupt" in str(error)
            errors.append(len(found) + len(stacker._queue) + lost)
            lost = errors[-1] + 1 - given
            stacker.drop_step()
            assert not stacker.failed
            continue
        except StopIteration:
            break
        many = inputs.steps * batches_per_step
        new = (
            inputs.batches
            if inputs.block is None
            else inputs.block[inputs.start : inputs.start + many]
        )
        found += [int(one) for one in new]
        given = len(found)
    assert errors == list(bad)
    expected, step = [], []
    for i in range(1000):
        step = [] if i in bad else [*step, i]
        if len(step) == batches_per_step:
            expected, step = expected + step, []
    assert found == expected


@pytest.mark.parametrize("endless", [True, False])
def test_a_generator_that_raises_gives_all_batches_before(endless, full_blocks):
    """It can't be moved back. Endless data are pulled without asking for the end."""

    def numbers():
        yield from range(950)
        raise ValueError("corrupt")

    data = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec([], tf.int64))
    stacker = BatchStacker(iter(data.repeat()), endless=endless)
    stacker.reads_ahead = True
    found = []
    with pytest.raises(tf.errors.OpError, match="corrupt"):
        while True:
            found.extend(int(one) for one in _values(stacker.take(50)))
    assert found == list(range(950))


def test_an_error_that_is_met_while_pausing_is_raised_in_its_place(full_blocks):
    """Until then the iterator's state would leave the error out, so `paused` gives no number."""
    second_block_begun = threading.Event()

    def note(i):
        if i == 500:
            second_block_begun.set()
        return i

    data = _corrupt([600]).map(
        lambda i: tf.ensure_shape(tf.numpy_function(note, [i], tf.int64), [])
    )
    stacker = BatchStacker(iter(data))
    stacker.reads_ahead = True
    assert len(_exactly(stacker, 10)) == 10  # of batch 0 and the block of 1 to 400
    # Otherwise the pause could come first, before the block of 401 to 800 is begun.
    assert second_block_begun.wait(60)
    with stacker.paused() as ahead:
        assert ahead is None
    assert [int(one) for one in _exactly(stacker, 590)] == [*range(10, 600)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        stacker.take(1)
    stacker.drop_step()
    with stacker.paused() as ahead:
        assert ahead == 0
    assert [int(one) for one in _exactly(stacker, 3)] == [601, 602, 603]


def test_of_an_iterator_the_message_tells_whether_the_data_failed():
    for named, expected in (("[[{{node IteratorGetNext}}]]", True), ("[[{{node net/w}}]]", False)):
        error = tf.errors.InvalidArgumentError(None, None, named)
        assert raised_by_data(iter(()), error) == expected


def test_of_a_stacker_its_last_call_tells_whether_the_data_failed():
    stacker = BatchStacker(iter(_corrupt([1])))
    error = tf.errors.InvalidArgumentError(None, None, "[[{{node IteratorGetNext}}]]")
    stacker.take_step()
    assert not raised_by_data(stacker, error)
    with pytest.raises(tf.errors.InvalidArgumentError):
        stacker.take_step()
    assert raised_by_data(stacker, error)


def _values(inputs):
    if inputs.block is None:
        return [one.numpy() for one in inputs.batches]
    return inputs.block.numpy()[inputs.start : inputs.start + inputs.steps]


def _exactly(stacker, count):
    found = []
    while len(found) < count:
        found.extend(_values(stacker.take(count - len(found))))
    return found


def _move(source, target):
    """Brings one iterator to where another is."""
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(iterator=source).write(f"{folder}/iterator")
        tf.train.Checkpoint(iterator=target).read(path).assert_consumed()


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 11])
def test_a_resumed_run_stacks_the_batches_that_the_whole_one_stacks(cut, full_blocks):
    """A short batch runs alone, even if the run resumes right before it."""

    def stacked(start, count, state):
        numbers = tf.data.Dataset.range(22).batch(4).repeat()  # 4 4 4 4 4 2
        stacker = BatchStacker(iter(numbers.skip(start)), state=state)
        stacker.reads_ahead = True
        found = [stacker.take(1).block is not None for _ in range(count)]
        return found, stacker.size.state()

    whole, _ = stacked(0, 18, None)
    assert whole == [True, True, True, True, True, False] * 3
    first, state = stacked(0, cut, None)
    assert first + stacked(cut, 18 - cut, state)[0] == whole
