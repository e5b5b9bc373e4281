"""What an example is, and which tensors belong to no single one, is declared in one place."""

import pytest
import tensorflow as tf

from tfloss.data import BatchLayout
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, in_proportion, tensor_name
from tfloss.errors import DataError

TWO = {"labelled": {"image": tf.zeros([4, 2])}, "unlabelled": tf.zeros([12]), "t": tf.constant(1.0)}
LABELLED, UNLABELLED = "batch['labelled']['image']", "batch['unlabelled']"


def test_names_are_keys_indices_and_fields():
    assert tensor_name("batch['labelled'][0].image") == "labelled/0/image"
    assert tensor_name("batch['a/b'][\"it's\"]") == "a/b/it's"
    assert tensor_name("batch") == ""


@pytest.mark.parametrize("name", ["labelled", "labelled/image", "lab*", "*/image"])
def test_a_name_stands_for_the_tensors_below_it(name):
    layout = BatchLayout(examples=name)
    assert layout.sizes(TWO) == {LABELLED: 4, UNLABELLED: 12}
    assert layout.counting(layout.sizes(TWO)) == [LABELLED]
    assert layout.count(TWO) == layout.static_count(TWO) == 4


def test_whole_tensors_have_no_size():
    layout = BatchLayout(whole=["labelled", "other"])
    assert layout.whole == ("labelled", "other")
    assert layout.sizes(TWO) == {UNLABELLED: 12} and layout.count(TWO) == 12
    assert BatchLayout(whole="*").count(TWO) is None


def test_without_a_declaration_all_rows_count():
    assert ROWS_ARE_EXAMPLES.count(TWO) == 16 and ROWS_ARE_EXAMPLES.static_count(TWO) is None
    assert ROWS_ARE_EXAMPLES.count((tf.zeros([3]), tf.zeros([3, 1]))) == 3
    assert ROWS_ARE_EXAMPLES.count({"t": tf.constant(1.0), "none": None}) is None
    spec = (tf.TensorSpec([]), tf.TensorSpec([4, 3]))
    assert ROWS_ARE_EXAMPLES.static_count(spec) == 4
    assert ROWS_ARE_EXAMPLES.static_count(tf.TensorSpec([None])) is None


def test_batches_in_one_proportion_can_be_compared():
    def sizes(*rows):
        return [dict(zip(("batch['a']", "batch['b']"), row, strict=True)) for row in rows]

    assert in_proportion([[1, 3], [2, 6], [0, 0]]) and not in_proportion([[1, 3], [2, 5]])
    assert ROWS_ARE_EXAMPLES.unclear(sizes((1, 3), (2, 6))) is None
    assert BatchLayout("a").unclear(sizes((1, 3), (2, 5))) is None
    problem = ROWS_ARE_EXAMPLES.unclear(sizes((1, 3), (2, 6), (2, 5)))
    assert problem is not None and "batch['a'] 1, batch['b'] 3, then batch['a'] 2" in problem
    assert "batch_layout=tfloss.data.BatchLayout(examples=..." in problem and "'a', 'b'" in problem


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (BatchLayout(examples="label"), r"examples='label'\) names no tensor.*'labelled/image'"),
        (BatchLayout(whole="weights"), r"whole='weights'\) names no tensor.*'t', 'unlabelled'"),
        (BatchLayout(examples="t"), r"examples='t'\): batch\['t'\] is a scalar or whole"),
        (BatchLayout("labelled", whole="lab*"), "is a scalar or whole"),
    ],
)
def test_declared_names_must_be_those_of_tensors(layout, message):
    spec = tf.data.Dataset.from_tensors(TWO).element_spec
    BatchLayout("labelled", whole="unlabelled").check_names(spec)
    with pytest.raises(DataError, match=message):
        layout.check_names(spec)


def test_names_must_be_strings():
    with pytest.raises(ValueError, match=r"BatchLayout\(whole=...\) takes names"):
        BatchLayout(whole=[0])
