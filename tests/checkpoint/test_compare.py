"""What changed between two checkpoints, with numbers worked out by hand."""

import math

import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory
from tfloss.checkpoint.compare import compare, print_changes

BEFORE = {
    "little": tf.constant([3.0, 4.0]),  # of norm 5
    "much": tf.constant([[1, 0]]),
    "from_nothing": tf.constant([0.0]),
    "half": tf.constant([2.0], tf.bfloat16),
    "text": tf.constant(["a"]),
    "same": tf.constant([math.nan, 1.0]),
    "switch": tf.constant([True, False]),
    "longer": tf.constant([1.0]),
    "old": tf.constant(1.0),
}
AFTER = BEFORE | {
    "little": tf.constant([3.0, 3.5]),
    "much": tf.constant([[1, 3]]),
    "from_nothing": tf.constant([0.25]),
    "half": tf.constant([1.0], tf.bfloat16),
    "text": tf.constant(["b"]),
    "switch": tf.constant([True, True]),
    "longer": tf.constant([1.0, 2.0]),
    "new": tf.constant(1.0),
}


def saved(path):
    directory = CheckpointDirectory(path)
    for step, values in enumerate((BEFORE, AFTER), 1):
        directory.save(
            step, {k: tf.Variable(v) for k, v in values.items() if (k, step) != ("old", 2)}
        )
    return directory


def test_what_changed_and_by_how_much(tmp_path):
    directory = saved(tmp_path)
    found = compare(directory.at(1), directory.at(2))
    assert found.added == ["new"] and found.removed == ["old"] and found.same == 1
    assert found.reshaped == ["longer ([1] float32 -> [2] float32)"]
    assert found.changed == {
        "from_nothing": (0.25, math.inf),
        "text": (math.inf, math.inf),
        "much": (3.0, 3.0),
        "switch": (1.0, 1.0),
        "half": (1.0, 0.5),
        "little": (0.5, 0.1),
    }
    assert list(found.changed) == ["from_nothing", "text", "much", "switch", "half", "little"]


def test_the_other_way_round_and_with_itself(tmp_path):
    directory = saved(tmp_path)
    found = compare(directory.at(2), directory.at(1))
    assert found.added == ["old"] and found.removed == ["new"]
    assert found.changed["half"] == (1.0, 1.0)
    itself = compare(directory.at(1), directory.at(1))
    assert (itself.changed, itself.same) == ({}, len(BEFORE))


def test_as_it_is_printed(tmp_path, capsys):
    print_changes(saved(tmp_path), 1, 2)
    assert capsys.readouterr().out.splitlines() == [
        "changed       largest difference  relative",
        "from_nothing  0.25                inf",
        "text          inf                 inf",
        "much          3                   3",
        "switch        1                   1",
        "half          1                   0.5",
        "little        0.5                 0.1",
        "added: new",
        "removed: old",
        "reshaped: longer ([1] float32 -> [2] float32)",
        "6 changed, 1 are equal",
    ]
