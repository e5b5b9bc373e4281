"""One evaluator is made for each set of metrics, and the oldest one makes room for a new one."""

import keras

from tests.toys import Line
from tfloss.evaluation.evaluator_cache import EvaluatorCache
from tfloss.evaluation.metrics import metric
from tfloss.step.train_step import TrainStep


def _metric():
    return metric(keras.metrics.Mean(), lambda batch, predictions: predictions["y"])


def _cache():
    return EvaluatorCache(TrainStep(Line(), keras.optimizers.SGD(0.1)))


def test_the_same_metric_objects_give_the_same_evaluator():
    cache, mean = _cache(), _metric()
    first = cache.get({"mean": mean}, False, ())
    assert cache.get({"mean": mean}, False, ()) is first
    others = [
        cache.get({"mean": _metric()}, False, ()),
        cache.get({"average": mean}, False, ()),
        cache.get({"mean": mean}, True, ()),
        cache.get({"mean": mean}, False, ("frozen",)),
    ]
    assert first not in others and len(cache) == 5


def test_the_oldest_evaluator_is_dropped():
    cache, mean = _cache(), _metric()
    first = cache.get({"mean": mean}, False, (0,))
    for i in range(1, cache.MAX_SIZE + 1):
        last = cache.get({"mean": mean}, False, (i,))
    assert len(cache) == cache.MAX_SIZE
    assert cache.get({"mean": mean}, False, (cache.MAX_SIZE,)) is last
    assert cache.get({"mean": mean}, False, (0,)) is not first
