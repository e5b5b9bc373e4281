"""Pulling a block adapts to how fast batches arrive."""

import tensorflow as tf

from tfloss.data.pull_block import PullBlock


def test_data_that_become_fast_are_pulled_without_a_time_limit(data_clock):
    """Regression: the first four batches decided for the entire run, and a cold start failed."""
    numbers = tf.data.Dataset.range(10**6)
    data = data_clock.slowed(numbers, lambda i: (i < 20) / 16).repeat()
    iterator = iter(data)
    pull = PullBlock(iterator, next(iterator), 50, aligned=True, endless=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 4
    blocks = tf.data.Dataset.range(100).map(lambda _: pull()).with_options(options)
    found, untimed, seen = [], [], 0
    for block, _, (count, has_remainder, ended) in blocks:
        assert not has_remainder and not ended
        found.append(int(count))
        untimed.append(bool(pull.untimed.numpy()))
        assert block.numpy()[:count].tolist() == list(range(seen + 1, seen + 1 + int(count)))
        seen += int(count)
        if len(found) > 4 and untimed[-2]:
            break
    assert found == [5, 5, 5, 35, 50, 50]
    assert untimed == [False, False, False, False, True, True]


def test_full_blocks_are_pulled_without_changes_of_threads():
    """Regression: a queue for the batches had asynchronous ops, and a thread change for each."""
    data = tf.data.Dataset.from_tensors({"x": tf.ones([3]), "y": 1}).repeat()
    iterator = iter(data)
    pull = PullBlock(iterator, next(iterator), 51, endless=True)
    graph = tf.function(pull._pull_full).get_concrete_function().graph.as_graph_def()
    (body,) = [one for one in graph.library.function if "_body_" in one.signature.name]
    kinds = [node.op for node in body.node_def]
    assert not [kind for kind in kinds if "Queue" in kind or kind == "IteratorGetNext"]
    # 17 iterations, which only read batches and keep them; tracing all 51 would take long.
    assert kinds.count("IteratorGetNextSync") == kinds.count("Stage") == 3
    assert kinds.count("TensorListSetItem") == 2 * 3
    assert set(kinds) - {"IteratorGetNextSync", "Stage", "TensorListSetItem"} <= {
        "AddV2", "Const", "Identity", "NoOp",
    }  # fmt: skip
