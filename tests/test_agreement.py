"""One worker agrees with itself; several are in tests/workers."""

import tensorflow as tf

from tfloss.agreement import Agreement
from tfloss.distribution import is_chief, worker_position


def test_a_single_worker_has_its_way(replicas):
    for strategy in (replicas(1), replicas(2)):
        agreement = Agreement(strategy)
        assert agreement.chief and agreement.workers == 1
        assert agreement.settle([True, False], [3.0]) == ([True, False], [3.0])
        assert agreement.chiefs({"a": 1.0}) == {"a": 1.0}
        agreement.check_same({"step": 3}, "advice")
        assert worker_position(strategy) == (0, 1) and is_chief(strategy)


def test_a_sum_over_one_worker_is_its_own():
    agreement = Agreement(tf.distribute.get_strategy())
    assert agreement.sum([1.5, 2.0]).tolist() == [1.5, 2.0]
