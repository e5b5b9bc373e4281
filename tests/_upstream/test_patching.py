"""Attributes are replaced while any thread needs them, and restored afterwards."""

import threading
import types

import pytest

from tfloss import _upstream


def test_the_first_thread_replaces_and_the_last_one_restores():
    owner = types.SimpleNamespace(value=1)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with _upstream.replaced(owner, "value", lambda value: value + 1):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with _upstream.replaced(owner, "value", lambda value: value + 1):
        thread.start()
        inside.wait(10)
        assert owner.value == 2
    assert owner.value == 2  # the other thread still needs it
    leave.set()
    thread.join()
    assert owner.value == 1


def test_an_inherited_attribute_is_inherited_again_after_an_error():
    class Base:
        value = 1

    class Derived(Base):
        pass

    with pytest.raises(KeyError), _upstream.replaced(Derived, "value", lambda value: 2):
        assert Derived.value == 2
        raise KeyError
    assert Derived.value == 1 and "value" not in vars(Derived)
