"""The first number that is free is taken."""

from tfloss.common.unique_names import unique_name


def test_a_free_name_stays_and_a_taken_one_gets_the_first_free_number():
    assert unique_name("a", []) == "a"
    assert unique_name("a", ["a", "a_1", "a_3"]) == "a_2"
    assert unique_name("a", {"a": 1}, "#") == "a#1"
