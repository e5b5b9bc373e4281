"""An evaluation of data without a known length says how far it is."""

import logging

import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.common.logger import ChiefLogger, logger
from tfloss.evaluation import long_evaluation
from tfloss.evaluation.long_evaluation import LongEvaluation


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0  # a batch takes a second
        return self.now


@pytest.fixture
def said(monkeypatch):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    return lines


def generated(count):
    def examples():
        number = 0
        while count is None or number < count:
            yield {"x": [float(number)]}
            number += 1

    signature = {"x": tf.TensorSpec([1], tf.float32)}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)


def test_a_line_comes_after_30_seconds_and_when_the_time_has_doubled(said):
    evaluation = LongEvaluation(generated(None), ChiefLogger(), Clock())
    for _ in range(130):
        evaluation.batch_done()
    counts = [line.split(" ")[1] for line in said]
    assert counts == ["30", "60", "120"]
    assert said[0] == (
        "evaluating: 30 batches in 30 seconds so far. The data set doesn't know its length. If it "
        "never ends, as a generator with `while True` or a function with .repeat() in it, limit "
        "it with .take(n)."
    )


def test_nothing_is_said_of_data_that_know_their_length(said):
    evaluation = LongEvaluation(tf.data.Dataset.range(1_000), ChiefLogger(), Clock())
    for _ in range(130):
        evaluation.batch_done()
    assert said == []


def test_an_endless_generator_is_not_silent(said, monkeypatch):
    class EnoughError(Exception):
        pass

    class Stop:
        batches = 0

        def reset(self): ...

        def update(self, batch, predictions):
            self.batches += 1
            if self.batches == 3:
                raise EnoughError

        def result(self):
            return 0.0

    monkeypatch.setattr(long_evaluation, "_FIRST_SECONDS", 0.0)
    trainer = tfloss.Trainer(Line(), tf.keras.optimizers.SGD(), default_hooks=False)
    with pytest.raises(tfloss.errors.MetricError, match="EnoughError"):
        trainer.evaluate(generated(None), {"stop": Stop()})
    assert any(line.startswith("evaluating: 1 batches in 0 seconds so far") for line in said)
