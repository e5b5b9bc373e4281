"""Two nested mappings are compared value by value."""

from tfloss.common.nested_diff import ABSENT, differences, flatten


def test_values_that_differ_in_type_alone_differ():
    assert differences({"a": 1, "b": 2}, {"a": 1.0, "b": 2}) == {"a": (1, 1.0)}
    assert differences({"a": 1}, {"a": True}) == {"a": (1, True)}


def test_nested_and_missing_keys_are_named_by_their_path():
    found = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": None})
    assert found == {"a/c": (2, ABSENT), "d": (ABSENT, None)}
    assert str(ABSENT) == "absent"


def test_an_empty_mapping_is_a_value():
    assert flatten({"a": {}, "b": {"c": {}}}, ".") == {"a": {}, "b.c": {}}
