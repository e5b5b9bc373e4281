"""Where the replicas can't be synchronised, the error names the line and the cure."""

import keras
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss.engine.engine import Engine
from tfloss.errors import LossError
from tfloss.forward.synchronisation import synchronisation_explained

DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


def all_reduced(model, batch, y):
    context = tf.distribute.get_replica_context()
    return {"mean": context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(y))}


class Normalised(Line):
    def __init__(self):
        super().__init__(lambda model, batch, y: tf.reduce_mean(self.norm(y[:, None])))
        self.norm = keras.layers.BatchNormalization(synchronized=True)
        self.norm.build([None, 1])


@pytest.mark.parametrize("make", [lambda: Line(all_reduced), Normalised])
def test_a_synchronisation_under_xla_is_refused_by_its_line(make, replicas):
    train_step, iterator = make_step(make, DATA, replicas(2))
    with pytest.raises(
        LossError,
        match=r"A synchronisation .* at .*test_synchronisation.py:\d+ .*jit=False on several",
    ):
        Engine(train_step, mode="step").run(iterator, 1)


def test_it_works_in_a_graph(replicas):
    train_step, iterator = make_step(lambda: Line(all_reduced), DATA, replicas(2))
    logs = Engine(train_step).run(iterator, 1)
    values = dict(zip(logs.names, logs.rows()[0].tolist(), strict=True))
    assert values["losses/mean"] == 2.5
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * 2.5)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="^other$"), synchronisation_explained():
        raise RuntimeError("other")
