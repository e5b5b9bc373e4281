"""Random generators still behave as `tfloss._upstream.random_generators` expects."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_op_determinism_is_known():
    assert _upstream.op_determinism_enabled() is False  # turning it on is for good


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
