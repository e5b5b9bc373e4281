"""Random generators still behave as `tfloss._upstream.random_generators` expects."""

import random

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_op_determinism_is_known():
    assert _upstream.op_determinism_enabled() is False  # turning it on is for good


def test_whether_the_process_has_a_seed_is_known():
    keras.utils.set_random_seed(1)
    assert _upstream.process_is_seeded()
    keras.src.backend.common.global_state.clear_session()
    assert not _upstream.process_is_seeded()
    keras.utils.set_random_seed(1)


def test_global_generators_are_made_when_first_asked_for(monkeypatch):
    stateful = _upstream.random_generators.stateful_random_ops
    monkeypatch.setattr(stateful, "global_generator", None)
    keras.backend.clear_session()  # Keras's
    assert _upstream.global_generators() == {}
    tf.random.get_global_generator().uniform([])
    keras.random.uniform([])
    assert set(_upstream.global_generators()) == {"tensorflow", "keras"}
    monkeypatch.setattr(stateful, "global_generator", None)
    assert set(_upstream.global_generators()) == {"keras"}
    made = _upstream.global_generators(make=["tensorflow"])["tensorflow"]
    assert made is tf.random.get_global_generator().state


def test_keras_takes_the_generator_of_the_thread(replicas):
    strategy = replicas(2)
    generator = _upstream.keras_generator(strategy)
    assert _upstream.keras_generator(strategy) is generator
    assert _upstream.keras_generator_states(strategy) == [generator.state]

    @tf.function
    def draw():
        def replica():
            with _upstream.keras_generator_of_strategy():
                return keras.random.uniform([])

        return strategy.run(replica)

    first, second = strategy.experimental_local_results(draw())
    assert first != second
    states = [one.numpy().tolist() for one in generator.state.value.values]
    assert states[0] == states[1] == [5387, 5387]  # (0 + 1) * 5387 % 933199


def test_making_the_generator_of_keras_draws_nothing_from_python():
    keras.backend.clear_session()
    random.seed(3)
    expected = random.random()
    random.seed(3)
    _upstream.keras_generator(None)
    assert random.random() == expected
