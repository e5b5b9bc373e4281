"""What comes back from a checkpoint is equal, and of the same type."""

import collections
import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint.json_codec import decode, encode


def there_and_back(value):
    return decode(json.loads(json.dumps(encode(value, "state"), allow_nan=False)))


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"]},
        {1: "a", (2, 3): "b", None: 0, 1.5: [(1,)]},
        {"$type": "tuple", "items": []},
        (1, (2, [3])),
        {"s": {3, 1}, "f": frozenset("ab")},
        b"\x00\xff",
        2 - 3j,
        collections.deque([1, 2], maxlen=2),
        collections.Counter("abca"),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.defaultdict(list, {3: [1]}),
        np.float32(0.1),
        np.int64(2**60),
        np.bool_(True),
        10**30,
        -math.inf,
    ],
)
def test_equal_and_of_the_same_type(value):
    found = there_and_back(value)
    assert found == value and type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "array", [np.array([[1.5, np.nan]], np.float16), np.zeros([0, 2]), np.array(["a", "bc"])]
)
def test_arrays(array):
    found = there_and_back(array)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.shape == array.shape
    found.flags.writeable = True


def test_bfloat16_and_nan():
    value = tf.constant([1.5], tf.bfloat16).numpy()
    assert there_and_back(value).dtype == value.dtype
    assert math.isnan(there_and_back({"x": math.nan})["x"])


def test_plain_json_stays_as_it_is():
    assert encode({"best": 0.5, "steps": [1, 2]}, "state") == {"best": 0.5, "steps": [1, 2]}


class _Point(tuple):
    pass


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [0, tf.constant(1.0)]}, r"state\['a'\]\[1\] is a .*EagerTensor.*\.numpy\(\)"),
        ({"p": _Point()}, r"state\['p'\] is a .*_Point"),
        (collections.defaultdict(lambda: 0), "state is a collections.defaultdict"),
        (np.array([None]), "state is a numpy.ndarray"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(value, where):
    with pytest.raises(TypeError, match=where):
        encode(value, "state")
