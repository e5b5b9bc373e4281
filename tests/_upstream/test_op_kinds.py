"""The lists of ops in `tfloss._upstream.op_kinds` are still complete."""

import re

import pytest
import tensorflow as tf
import tensorflow.python.client.pywrap_tf_session as session
from tensorflow.core.framework import op_def_pb2

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_kernels_of_xla_are_registered():
    @tf.function
    def traced(x):
        return tf.strings.length(tf.io.encode_png(x)) + tf.size(tf.matmul([[1.0]], [[2.0]]))

    graph = traced.get_concrete_function(tf.TensorSpec([1, 1, 1], tf.uint8)).graph
    found = _upstream.ops_without_xla_kernel(graph.get_operations())
    assert {op.type for op in found} == {"EncodePng", "StringLength"}


def _registered():
    buffer = session.TF_GetBuffer(session.TF_GetAllOpList())
    return op_def_pb2.OpList.FromString(buffer).op


def test_ops_with_random_state_are_known_by_their_definition():
    """A new one shows here."""
    states = {op.name: _upstream.op_state_by_definition(op) for op in _registered()}
    kernels = {name for name, state in states.items() if state == "kernel"}
    assert {name for name in kernels if not name.endswith("CandidateSampler")} == {
        *("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"),  # if there is dropout
        *("CudnnRNNBackprop", "CudnnRNNBackpropV2", "CudnnRNNBackpropV3"),
        *("Multinomial", "ParameterizedTruncatedNormal", "TruncatedNormal", "RandomCrop"),
        *("RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomStandardNormal"),
        *("RandomShuffle", "RandomShuffleQueue", "RandomShuffleQueueV2"),
        *("RandomUniform", "RandomUniformInt"),
        *("SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"),
    }


WRITES = r"Assign.*Variable|Resource((Sparse)?Apply|Scatter|StridedSliceAssign|CountUpTo)"
LISTS = {
    r"Rng|Stateful(?!Partitioned)": _upstream.op_kinds.GENERATOR_OPS,
    WRITES: _upstream.VARIABLE_WRITE_OPS,
    r"Assign(Add|Sub)?$": _upstream.REF_VARIABLE_WRITE_OPS,
    r"LookupTable(Insert|Remove|Import)": _upstream.TABLE_WRITE_OPS,
    r"Iterator(GetNext)|MultiDeviceIterator(Init|GetNext)|Queue(Close|Dequeue|Enqueue).*V2"
    r"|Reader(Read|Reset|Restore).*V2|ResourceAccumulator(Apply|Set|Take)|Stack(Close|Pop|Push)V2"
    r"|TensorArray(Scatter|Split|Write)V3": _upstream.op_kinds.RESOURCE_WRITE_OPS,
    r"((Ordered)?Map)?(Uns|S)tage(Clear|NoKey)?$|(Ordered)?MapClear": (
        _upstream.op_kinds.STAGING_OPS
    ),
    r".*PyFunc": _upstream.PYTHON_OPS,
    r"Collective|Nccl|CrossReplica": _upstream.COLLECTIVE_OPS,
    r".*Summary": _upstream.SUMMARY_OPS,
}


@pytest.mark.parametrize("pattern", LISTS)
def test_lists_of_ops_are_complete(pattern):
    """A new op shows here."""
    names = {op.name for op in _registered() if re.match(pattern, op.name)}
    assert names == LISTS[pattern]


def test_ops_that_take_a_variable_read_it_or_are_in_the_list_of_writes():
    """A new op shows here."""
    resource = tf.resource.as_datatype_enum
    takes = {
        op.name
        for op in _registered()
        if op.is_stateful
        and [one.type for one in op.input_arg][:1] == [resource]
        and {one.name for one in op.attr} & {"dtype", "T"}
        and "Variable" in op.name + op.summary + op.input_arg[0].description
    }
    reads = {name for name in takes if "Read" in name}
    assert takes - reads <= _upstream.VARIABLE_WRITE_OPS | {"VariableShape", "VarIsInitializedOp"}


def test_an_assignment_to_a_slice_of_a_variable_changes_its_state():
    variable = tf.Variable([1.0, 2.0])
    graph = tf.function(lambda: variable[1:].assign([3.0])).get_concrete_function().graph
    states = {op.type: _upstream.op_state(op) for op in graph.get_operations()}
    assert states["ResourceStridedSliceAssign"] == "variable"
