"""Counts the floating-point operations of a traced step, and predicts its peak memory.

    floating_point_operations(graph)
    peak_bytes(graph), peak_block_bytes(graph)

Both follow from shapes, so nothing runs. Memory is predicted in the order in which the ops were
traced: the forward pass, the backward pass, the update. A tensor is there from its op to the last
op that uses it. So what the backward pass needs of the forward pass is what makes up the peak. A
step runs independent ops at the same time, so that a few more tensors may be there. What kernels
need for themselves is not counted; `benchmarks/memory.py` compares with measurements. Host code, at
trace time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.inspect.traced_ops import operations

# The result is the input, or a view of it.
_VIEWS = frozenset(
    "Identity IdentityN Reshape Squeeze ExpandDims EnsureShape StopGradient PreventGradient "
    "Snapshot Bitcast".split()
)
# They move values, or make them of nothing.
_NO_ARITHMETIC = _VIEWS | frozenset(
    "Const Placeholder ReadVariableOp VariableShape Shape ShapeN Size Rank Fill ZerosLike OnesLike "
    "Concat ConcatV2 Pack Unpack Split SplitV Slice StridedSlice StridedSliceGrad Gather GatherV2 "
    "GatherNd ResourceGather Transpose Tile Pad PadV2 MirrorPad BroadcastTo Cast Reverse ReverseV2 "
    "PartitionedCall StatefulPartitionedCall While StatelessWhile If StatelessIf Case "
    "TensorListStack TensorListFromTensor TensorListGetItem TensorListSetItem TensorListReserve "
    "StatelessCase Range Where OneHot SpaceToBatchND BatchToSpaceND".split()
)
# The result may be written over an input that nothing else needs.
_IN_PLACE = frozenset(
    "Abs Add AddN AddV2 BiasAdd Cast Ceil Cos DivNoNan Div Elu EluGrad Erf Exp Expm1 Floor "
    "LeakyRelu LeakyReluGrad Log Log1p Maximum Minimum Mul MulNoNan Neg RealDiv Reciprocal Relu "
    "Relu6 Relu6Grad ReluGrad Rsqrt RsqrtGrad Selu SeluGrad Sigmoid SigmoidGrad Sign Sin Softmax "
    "LogSoftmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Sub Tanh TanhGrad "
    "ClipByValue Select SelectV2".split()
)
_MOST_UNUSED = 128 * 2**20  # bytes of a block; kMaxInternalFragmentation in bfc_allocator.cc
_LOOPS = ("While", "StatelessWhile", "MapDefun")


def floating_point_operations(
    graph: Any, counts: Callable[[tf.Operation], bool] = lambda op: True
) -> tuple[int, list[str]]:
    """Counts the operations of a graph and of the functions that it calls. Each counts once.

    A multiplication and an addition are two. Products of matrices and convolutions are counted
    exactly, another op as one operation for each element of its results.

    Args:
      graph: The `tf.Graph` of the step.
      counts: Whether an op counts, such as those of one replica.

    Returns:
      The number; what could not be counted, in words.
    """
    total, loops, unknown = 0, 0, 0
    for op, _ in operations(graph):
        if not counts(op):
            continue
        loops += op.type in _LOOPS
        found = _operations_of(op)
        unknown += found is None
        total += found or 0
    notes = ["loops count as one turn"] if loops else []
    if unknown:
        notes.append(f"{unknown} ops have shapes that depend on values")
    return total, notes


def peak_bytes(graph: Any, counts: Callable[[tf.Operation], bool] = lambda op: True) -> int:
    """Predicts the largest number of bytes that tensors take at one time, without variables.

    A dimension that depends on values counts as 1.

    Args:
      graph: The `tf.Graph` of the step, traced.
      counts: Whether an op counts, such as those of one replica.
    """
    ops = [op for op in graph.get_operations() if counts(op)]
    return _Liveness(ops, {}, _bytes).peak(batch=True)


def peak_block_bytes(graph: Any, counts: Callable[[tf.Operation], bool] = lambda op: True) -> int:
    """The same of the largest blocks that TensorFlow's allocator may take for these tensors.

    It gives a tensor a free block as it is, unless the block is twice as large as the tensor or 128
    MiB larger; then it splits the block (`BFCAllocator::FindChunkPtr` in TensorFlow's
    bfc_allocator.cc). GPUs have this allocator, and CPUs with oneDNN, the default.

    Args:
      graph: The `tf.Graph` of the step, traced.
      counts: Whether an op counts, such as those of one replica.
    """

    def block(tensor: tf.Tensor) -> int:
        size = _bytes(tensor)
        return size + min(size, _MOST_UNUSED)

    ops = [op for op in graph.get_operations() if counts(op)]
    return _Liveness(ops, {}, block).peak(batch=True)


@dataclasses.dataclass
class _Buffer:
    """Memory of one tensor and its views: bytes, and the index of the last op that uses it."""

    size: int
    last: int


class _Liveness:
    """Which buffers are there while the ops of one function run."""

    def __init__(
        self,
        ops: Iterable[tf.Operation],
        inner: dict[str, int],
        size_of: Callable[[tf.Tensor], int],
    ):
        self._ops, self._size_of = list(ops), size_of
        self._inner = inner  # peaks of called functions, by name
        self._buffers: dict[str, _Buffer] = {}

    def peak(self, *, batch: bool) -> int:
        """The most bytes at one time. `batch`: arguments count, as the batch of the step does."""
        for index, op in enumerate(self._ops):
            for tensor in op.inputs:
                if (buffer := self._buffers.get(tensor.name)) is not None:
                    buffer.last = max(buffer.last, index)
            for tensor in op.outputs:
                self._buffers[tensor.name] = self._buffer(op, tensor, index, batch)
        live = most = 0
        ends: dict[int, dict[int, int]] = {}  # by index of the last use: size by id of a buffer
        for index, op in enumerate(self._ops):
            dying = ends.pop(index, {})
            own = {id(b): b for b in (self._buffers[t.name] for t in op.outputs)}
            used = {id(self._buffers[t.name]) for t in op.inputs if t.name in self._buffers}
            # What a called function returns is counted inside of it.
            most = max(most, live + max(map(self._inside, _graphs_called(op)), default=0))
            new = [b for key, b in own.items() if key not in used and b.size]
            for buffer in new:
                free = next((k for k, size in dying.items() if size == buffer.size), None)
                if free is not None and op.type in _IN_PLACE:
                    live -= dying.pop(free)
                live += buffer.size
                ends.setdefault(max(buffer.last, index), {})[id(buffer)] = buffer.size
            most = max(most, live)
            # What nobody uses is gone after its op, as what was used for the last time.
            live -= sum(dying.values()) + sum(ends.pop(index, {}).values())
        return most

    def _buffer(self, op: tf.Operation, tensor: tf.Tensor, index: int, batch: bool) -> _Buffer:
        if op.type in _VIEWS:
            source = op.inputs[min(tensor.value_index, len(op.inputs) - 1)]
            if (found := self._buffers.get(source.name)) is not None:
                return found
        variable = op.type == "ReadVariableOp" or tensor.dtype in (tf.resource, tf.variant)
        argument = op.type == "Placeholder" and not batch
        # Whoever calls the function holds its arguments, and the graph its constants.
        last = len(self._ops) if op.type in ("Placeholder", "Const") else index
        return _Buffer(0 if variable or argument else self._size_of(tensor), last)

    def _inside(self, called: tuple[str, Any]) -> int:
        name, graph = called
        if name not in self._inner:
            self._inner[name] = 0  # a function that calls itself
            inside = _Liveness(graph.get_operations(), self._inner, self._size_of)
            self._inner[name] = inside.peak(batch=False)
        return self._inner[name]


def _graphs_called(op: tf.Operation) -> list[tuple[str, Any]]:
    found = [(name, _upstream.called_graph(op, name)) for name in _upstream.called_functions(op)]
    return [(name, graph) for name, graph in found if graph is not None]


def _bytes(tensor: tf.Tensor) -> int:
    rank: Any = tensor.shape.rank
    sizes = tensor.shape.as_list() if rank is not None else []
    return math.prod(size or 1 for size in sizes) * tensor.dtype.size


def _operations_of(op: tf.Operation) -> int | None:
    """The floating-point operations of an op; None if a shape is unknown."""
    if op.type in _PRODUCTS:
        try:
            return 2 * int(_PRODUCTS[op.type](op))
        except TypeError:  # a dimension is None
            return None
    floats = [x for x in (*op.inputs, *op.outputs) if x.dtype.is_floating]
    if op.type in _NO_ARITHMETIC or not floats:
        return 0
    # A reduction has one operation for each value that goes in.
    sizes = [_elements(x) for x in floats]
    return None if None in sizes else max(sizes)


def _elements(tensor: tf.Tensor) -> Any:
    return tensor.shape.num_elements()  # None if it is unknown


def _matmul(op: tf.Operation) -> int:
    name = "transpose_a" if op.type == "MatMul" else "adj_x"
    inner = op.inputs[0].shape[-2 if op.get_attr(name) else -1]
    return _elements(op.outputs[0]) * inner


def _einsum(op: tf.Operation) -> int:
    left, _ = op.get_attr("equation").decode().split("->")
    sizes: dict[str, int] = {}
    ellipsis = 1
    for labels, tensor in zip(left.split(","), op.inputs, strict=True):
        shape: list[Any] = tensor.shape.as_list()
        before, dots, after = labels.partition("...")
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(reversed(after), reversed(shape), strict=False) if dots else ())
        ellipsis = max(ellipsis, math.prod(shape[len(before) : len(shape) - len(after)] or [1]))
    return math.prod(sizes.values()) * (ellipsis if "..." in left else 1)


def _convolution(filters: Any, results: Any) -> int:
    """Products of a convolution: each result is a sum over the filter of its channel."""
    shape: list[Any] = filters.shape.as_list()
    return _elements(results) * math.prod(shape[:-1])


def _depthwise(filters: Any, results: Any) -> int:
    return _elements(results) * math.prod(filters.shape.as_list()[:2])


_PRODUCTS: dict[str, Callable[[tf.Operation], int]] = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
    "Conv2D": lambda op: _convolution(op.inputs[1], op.outputs[0]),
    "Conv3D": lambda op: _convolution(op.inputs[1], op.outputs[0]),
    "Conv2DBackpropInput": lambda op: _convolution(op.inputs[1], op.inputs[2]),
    "Conv3DBackpropInputV2": lambda op: _convolution(op.inputs[1], op.inputs[2]),
    "Conv2DBackpropFilter": lambda op: _convolution(op.outputs[0], op.inputs[2]),
    "Conv3DBackpropFilterV2": lambda op: _convolution(op.outputs[0], op.inputs[2]),
    "DepthwiseConv2dNative": lambda op: _depthwise(op.inputs[1], op.outputs[0]),
    "DepthwiseConv2dNativeBackpropInput": lambda op: _depthwise(op.inputs[1], op.inputs[2]),
    "DepthwiseConv2dNativeBackpropFilter": lambda op: _depthwise(op.outputs[0], op.inputs[2]),
}
