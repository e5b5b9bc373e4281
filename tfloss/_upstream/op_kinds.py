"""Which types of ops draw random numbers, change state, write summaries, call Python.

An `OpDef` does not say what an op does with a resource, so those types are listed here by name.
`tests/_upstream/test_op_kinds.py` compares the lists with all ops of TensorFlow: it fails for a
new op.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import tensorflow as tf
import tensorflow.python.framework.kernels as registry

State = Literal["kernel", "generator", "variable", "table", "resource", "python", ""]

GENERATOR_OPS = frozenset(
    "RngReadAndSkip RngSkip StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2 "
    "StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt".split()
)
VARIABLE_WRITE_OPS = frozenset(
    "AssignAddVariableOp AssignSubVariableOp AssignVariableOp AssignVariableXlaConcatND "
    "ResourceApplyAdaMax ResourceApplyAdadelta ResourceApplyAdagrad ResourceApplyAdagradDA "
    "ResourceApplyAdagradV2 ResourceApplyAdam ResourceApplyAdamWithAmsgrad "
    "ResourceApplyAddSign ResourceApplyCenteredRMSProp ResourceApplyFtrl ResourceApplyFtrlV2 "
    "ResourceApplyGradientDescent ResourceApplyKerasMomentum ResourceApplyMomentum "
    "ResourceApplyPowerSign ResourceApplyProximalAdagrad ResourceApplyProximalGradientDescent "
    "ResourceApplyRMSProp ResourceCountUpTo ResourceScatterAdd ResourceScatterDiv "
    "ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd "
    "ResourceScatterNdMax ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate "
    "ResourceScatterSub ResourceScatterUpdate ResourceSparseApplyAdadelta "
    "ResourceSparseApplyAdagrad ResourceSparseApplyAdagradDA ResourceSparseApplyAdagradV2 "
    "ResourceSparseApplyCenteredRMSProp ResourceSparseApplyFtrl ResourceSparseApplyFtrlV2 "
    "ResourceSparseApplyKerasMomentum ResourceSparseApplyMomentum "
    "ResourceSparseApplyProximalAdagrad ResourceSparseApplyProximalGradientDescent "
    "ResourceSparseApplyRMSProp ResourceStridedSliceAssign".split()
)
REF_VARIABLE_WRITE_OPS = frozenset(["Assign", "AssignAdd", "AssignSub"])  # of TensorFlow 1
TABLE_WRITE_OPS = frozenset(
    "LookupTableImport LookupTableImportV2 LookupTableInsert LookupTableInsertV2 "
    "LookupTableRemoveV2".split()
)
# These change an object that can't be read: a queue, a stack, an iterator, an accumulator, ...
RESOURCE_WRITE_OPS = frozenset(
    "IteratorGetNext IteratorGetNextAsOptional IteratorGetNextSync MultiDeviceIteratorInit "
    "MultiDeviceIteratorGetNextFromShard QueueCloseV2 QueueDequeueManyV2 QueueDequeueUpToV2 "
    "QueueDequeueV2 QueueEnqueueManyV2 QueueEnqueueV2 ReaderReadUpToV2 ReaderReadV2 ReaderResetV2 "
    "ReaderRestoreStateV2 ResourceAccumulatorApplyGradient ResourceAccumulatorSetGlobalStep "
    "ResourceAccumulatorTakeGradient StackCloseV2 StackPopV2 StackPushV2 TensorArrayScatterV3 "
    "TensorArraySplitV3 TensorArrayWriteV3".split()
)
# These change an object that they name, and take no handle of it.
STAGING_OPS = frozenset(
    "MapClear MapStage MapUnstage MapUnstageNoKey OrderedMapClear OrderedMapStage "
    "OrderedMapUnstage OrderedMapUnstageNoKey Stage StageClear Unstage".split()
)
PYTHON_OPS = frozenset(["PyFunc", "EagerPyFunc", "PyFuncStateless"])
COLLECTIVE_OPS = frozenset(
    "CollectiveAllToAllV2 CollectiveAllToAllV3 CollectiveAssignGroupV2 CollectiveBcastRecv "
    "CollectiveBcastRecvV2 CollectiveBcastSend CollectiveBcastSendV2 CollectiveGather "
    "CollectiveGatherV2 CollectiveInitializeCommunicator CollectivePermute CollectiveReduce "
    "CollectiveReduceScatterV2 CollectiveReduceV2 CollectiveReduceV3 CrossReplicaSum "
    "NcclAllReduce NcclBroadcast NcclReduce".split()
)
SUMMARY_OPS = frozenset(
    "AudioSummary AudioSummaryV2 BoostedTreesMakeStatsSummary CloseSummaryWriter "
    "CreateSummaryDbWriter CreateSummaryFileWriter DebugNumericSummary DebugNumericSummaryV2 "
    "ExperimentalStatsAggregatorSummary FlushSummaryWriter HistogramSummary ImageSummary "
    "MergeSummary ScalarSummary StatsAggregatorSetSummaryWriter StatsAggregatorSummary "
    "SummaryWriter TensorSummary TensorSummaryV2 WriteAudioSummary WriteGraphSummary "
    "WriteHistogramSummary WriteImageSummary WriteRawProtoSummary WriteScalarSummary "
    "WriteSummary".split()
)

# Cached by type of op, since each access to `op.op_def` makes a copy.
_definitions: dict[str, tuple[State, bool]] = {}  # state, and whether it depends on `dropout`


def op_state(op: tf.Operation) -> State:
    """Returns where an op keeps state that it changes.

    Returns:
      "kernel" for a random op that keeps its state where nothing can read it, "generator" for one
      that keeps it in the variable of a `tf.random.Generator`, "variable" for an op that assigns
      to a variable, "table" for one that changes a table, "resource" for one that changes another
      object, "python" for one that calls a Python function that may have state, "" for all others.
    """
    if op.type not in _definitions:
        definition = op.op_def
        with_dropout = any(attribute.name == "dropout" for attribute in definition.attr)
        _definitions[op.type] = (op_state_by_definition(definition), with_dropout)
    state, with_dropout = _definitions[op.type]
    if state == "kernel" and with_dropout and not op.get_attr("dropout"):  # cuDNN's RNNs
        return ""
    return state


def op_state_by_definition(definition: Any) -> State:
    """Returns the same as `op_state` for all ops with an `OpDef`."""
    if not definition.is_stateful:
        return ""
    if {"seed", "seed2"} <= {attribute.name for attribute in definition.attr}:
        return "kernel"
    if definition.name in GENERATOR_OPS:
        return "generator"
    for state, names in _STATES.items():
        if definition.name in names:
            return state
    return ""


_STATES: dict[State, frozenset[str]] = {
    "variable": VARIABLE_WRITE_OPS,
    "table": TABLE_WRITE_OPS,
    "resource": RESOURCE_WRITE_OPS | STAGING_OPS,
    "python": PYTHON_OPS,  # a PyFuncStateless is not stateful
}


def captured_resource(op: tf.Operation, known: Mapping[str, int]) -> bool:
    """Returns whether an op with the state "resource" changes an object that outlives its function.

    Args:
      op: The op.
      known: `{tensor name: id(handle)}` of the resources that its function has captured.
    """
    return op.type in STAGING_OPS or op.inputs[0].name in known


def ops_without_xla_kernel(operations: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Returns those of the ops that XLA can't compile for the devices of this machine.

    TensorFlow's own error names only one of them. Which kernels exist is not public. XLA's are
    registered when something is compiled for the first time.
    """
    tf.function(lambda: tf.constant(0), jit_compile=True, autograph=False)()
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"

    def compiles(name: str) -> bool:
        kernels = registry.get_registered_kernels_for_op(name).kernel
        return any(kernel.device_type == f"XLA_{device}_JIT" for kernel in kernels)

    operations = list(operations)
    types = {op.type for op in operations} - {"Placeholder"}  # an argument of the function
    missing = {name for name in types if not compiles(name)}
    return [op for op in operations if op.type in missing]
