"""`tf.data` still behaves as `tfloss._upstream.input_pipelines` expects."""

import pytest
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.position import iterator_files

pytestmark = pytest.mark.upstream


def test_an_iterator_has_a_handle_and_is_read_in_this_thread():
    data = tf.data.Dataset.range(4).map(lambda i: {"i": i, "j": (2 * i, tf.ones([2]))})
    iterator = iter(data)

    @tf.function
    def two():
        return [_upstream.next_in_this_thread(iterator) for _ in range(2)]

    first, second = two()
    assert (first["i"], second["j"][0]) == (0, 2) and second["j"][1].shape == [2]
    assert next(iterator)["i"] == 2
    kinds = {op.type for op in two.get_concrete_function().graph.get_operations()}
    assert "IteratorGetNextSync" in kinds and "IteratorGetNext" not in kinds


def test_the_files_of_caches_are_known(tmp_path):
    data = tf.data.Dataset.range(3).cache(f"{tmp_path}/a").map(lambda x: x).cache()
    both = tf.data.Dataset.zip(data, tf.data.Dataset.range(3).cache(f"{tmp_path}/b")).batch(2)
    assert sorted(_upstream.cache_files(both)) == [f"{tmp_path}/a", f"{tmp_path}/b"]
    list(both)  # a complete file has an index
    assert (tmp_path / "a.index").is_file() and (tmp_path / "b.index").is_file()


def test_a_data_set_tells_what_it_is_made_of():
    numbers = tf.data.Dataset.range(3)
    mapped = numbers.map(lambda x: x + 1, num_parallel_calls=2, deterministic=False)
    data = tf.data.Dataset.zip(mapped, numbers.shuffle(3)).batch(2)
    below = _upstream.datasets_below(data)
    assert {id(numbers), id(mapped)} <= {id(one) for one in below}
    graphs = [graph for one in below for graph in _upstream.dataset_graphs(one)]
    assert ["AddV2"] == [op.type for g in graphs for op in g.get_operations() if op.type == "AddV2"]
    assert [_upstream.dataset_order(one) for one in (mapped, numbers)] == ["false", "default"]
    assert _upstream.dataset_seeds(numbers) is None
    assert _upstream.dataset_seeds(numbers.shuffle(3, seed=5)) != (0, 0)
    tf.random.set_seed(None)
    assert _upstream.dataset_seeds(numbers.shuffle(3)) == (0, 0)


def test_a_saved_state_tells_whether_it_holds_the_shuffles():
    """An iterator that has met the end of its data has dropped them."""

    def files(data, count):
        iterator = iter(data)
        for _ in range(count):
            next(iterator, None)
        return iterator_files(iterator)

    numbers = tf.data.Dataset.range(8)
    data = numbers.shuffle(8, seed=1).batch(2)
    assert [_upstream.saved_shuffles(files(data, n)) for n in (1, 4, 5)] == [1, 1, 0]
    assert _upstream.saved_shuffles(files(data.shuffle(4, seed=2).repeat(), 9)) == 2


def test_a_data_set_tells_how_often_it_shuffles_anew():
    numbers = tf.data.Dataset.range(8)
    shuffled = numbers.shuffle(8, seed=1)
    assert _upstream.reshuffles(numbers) == 0
    assert _upstream.reshuffles(shuffled.batch(2).shuffle(2)) == 2
    assert _upstream.reshuffles(numbers.shuffle(8, reshuffle_each_iteration=False)) == 0
    assert _upstream.reshuffles(shuffled.cache()) == 0


def test_the_size_that_the_last_batching_was_given_is_known():
    data = tf.data.Dataset.range(30)
    assert _upstream.likely_batch_size(data) is None
    data = data.batch(2).unbatch().batch(7).map(lambda x: x + 1).prefetch(1)
    assert _upstream.likely_batch_size(data) == 7
    parallel = tf.data.Dataset.range(30).batch(5, num_parallel_calls=2)
    assert _upstream.likely_batch_size(parallel) == 5
