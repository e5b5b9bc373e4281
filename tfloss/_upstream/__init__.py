"""Every place where tfloss leans on something TensorFlow or Keras doesn't document.

Each entry says what is used, why nothing public does, and which test in
`tests/_upstream/test_upstream.py` fails when upstream changes.
"""

import contextlib
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.name_scope import current_path  # of the layer being called
from keras.src.losses import loss as loss_module
from keras.src.random import seed_generator
from tensorflow.python.framework import config
from tensorflow.python.ops import stateful_random_ops

from tfloss._upstream.graphs import (  # noqa: F401
    called_graph,
    captured_handles,
    dataset_graphs,
    dataset_order,
    dataset_seeds,
    datasets_below,
    next_in_this_thread,
    without_xla_kernel,
)

_lock = threading.Lock()
_patches: dict[tuple[int, str], list] = {}  # (owner, attribute) -> [users, owner, original]

_MISSING = object()


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces `owner.attribute` while at least one thread is inside.

    Replicas of a MirroredStrategy trace in threads that interleave, so the first one in
    patches and the last one out restores.
    """
    key = (id(owner), attribute)
    with _lock:
        entry = _patches.get(key)
        if entry is None:
            own = vars(owner).get(attribute, _MISSING)
            entry = _patches[key] = [0, owner, own]
            setattr(owner, attribute, make(getattr(owner, attribute)))
        entry[0] += 1
    try:
        yield
    finally:
        with _lock:
            entry[0] -= 1
            if entry[0] == 0:
                del _patches[key]
                if entry[2] is _MISSING:
                    delattr(owner, attribute)
                else:
                    setattr(owner, attribute, entry[2])


@contextlib.contextmanager
def intercept_add_loss(observe: Callable[[keras.Layer, Any], bool]) -> Iterator[None]:
    """Shows every `layer.add_loss(value)` to `observe(layer, value)` first.

    Keras keeps the values in a plain list on the layer that all replica threads share, so
    that any synchronisation in the forward pass mixes them (and nothing tells which layer
    added which). The method is public; replacing it on the class for the duration of a
    forward pass is not. If `observe` returns True the value was taken and Keras doesn't
    see it.
    """

    def make(original):
        def add_loss(self, loss):
            if not observe(self, loss):
                original(self, loss)

        return add_loss

    with replaced(keras.Layer, "add_loss", make):
        yield


@contextlib.contextmanager
def intercept_tf_summary(observe: Callable[[str, Any, Any], bool]) -> Iterator[None]:
    """Shows every `tf.summary.*` call to `observe(tag, tensor, metadata)` first.

    All of `tf.summary.scalar`, `image`, ... (they live in TensorBoard) end in
    `tf.summary.write`, looked up at call time under `tf` or `tf.compat.v2`. `tensor` may be
    a callable that makes it. A writer in the graph would freeze step and writer at trace
    time, write once per replica or not at all, and not compile under XLA. Their tags get
    the graph's name scopes (`while/replica_1/net_1_1/act`) from `summary_scope`; here it is
    the path of the layer that is being called (`net/act`), which is the same in every trace.
    """

    def make_write(original):
        def write(tag, tensor, step=None, metadata=None, name=None):
            if observe(tag, tensor, metadata):
                return tf.constant(True)
            return original(tag, tensor, step=step, metadata=metadata, name=name)

        return write

    def make_scope(original):
        @contextlib.contextmanager
        def summary_scope(name, default_name="summary", values=None):
            with original(name, default_name, values) as (_, scope):
                path = current_path()
                yield f"{path}/{name}" if path else name, scope

        return summary_scope

    with contextlib.ExitStack() as stack:
        for module in (tf.summary, tf.compat.v2.summary):
            stack.enter_context(replaced(module, "write", make_write))
            stack.enter_context(replaced(module.experimental, "summary_scope", make_scope))
        yield


@contextlib.contextmanager
def losses_not_divided(here: Callable[[], bool]) -> Iterator[None]:
    """A `keras.losses.Loss` gives the mean of its own examples, where `here()` is true.

    It divides by the number of replicas, for optimizers that sum gradients over them, while
    `keras.losses.mse` and TensorFlow's functions don't. There is no public switch.
    """

    def make(original):
        def scale_loss_for_distribution(value):
            return value if here() else original(value)

        return scale_loss_for_distribution

    with replaced(loss_module, "scale_loss_for_distribution", make):
        yield


@contextlib.contextmanager
def inputs_untouched(model: keras.Model) -> Iterator[None]:
    """Calls of `model` itself see their inputs as given, whatever its dtype policy.

    `Model.__call__` casts every float in its arguments to the compute dtype, labels
    included: under mixed_float16 a box coordinate of 70000. becomes inf. `autocast=False`
    is public but also turns off the casting of the model's own weights;
    `_convert_input_args` turns off just this. Sublayers still cast what they are given.
    """
    with replaced(model, "_convert_input_args", lambda original: False):
        yield


@contextlib.contextmanager
def gradients_already_reduced(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """`optimizer.apply` inside takes gradients that are summed over replicas already.

    Keras sums them inside `apply`, after its own clipping, which is too late for clipping
    by the norm of the sum. There is no public switch.
    """
    with contextlib.ExitStack() as stack:
        one: Any = optimizer
        while one is not None:
            stack.enter_context(replaced(one, "_all_reduce_sum_gradients", lambda original: list))
            one = getattr(one, "inner_optimizer", None)
        yield


def in_scratch_graph() -> bool:
    """True while Keras runs `call` only to learn shapes, in a graph that nobody executes.

    Building a subclassed model runs its `call` more than once. Keras names the graph
    `scratch_graph`; there is no public way to ask.
    """
    if tf.executing_eagerly():
        return False
    return str(getattr(tf.compat.v1.get_default_graph(), "name", "")).startswith("scratch_graph")


def gradient_is_recorded() -> bool:
    """False inside `tf.recompute_grad` or `keras.remat`, where the tape sees nothing.

    Public calls only, but the behaviour (a nested tape records nothing either) is not
    documented.
    """
    probe = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(probe)
        result = tf.identity(probe)
    return tape.gradient(result, probe) is not None


def captured_here(handle: tf.Tensor) -> tf.Tensor:
    """The tensor by which the current graph knows `handle`, a variable's resource handle.

    `FuncGraph.capture` is the only way from a variable to its placeholder in a traced
    function.
    """
    graph = tf.compat.v1.get_default_graph()
    return graph.capture(handle) if hasattr(graph, "capture") else handle


def layers_by_path(model: keras.Layer) -> list[tuple[str, keras.Layer]]:
    """The model and every layer in it, however nested in lists, dicts and attributes.

    Each comes with its path; a layer without variables of its own (Dropout) has none in
    Keras and gets that of its parent and its name. `model.layers` is public but stops at
    layers that are not models, so `_layers` it is.
    """
    found: dict[int, tuple[str, keras.Layer]] = {}

    def visit(layer, parent):
        if id(layer) not in found:
            path = layer.path or (f"{parent}/{layer.name}" if parent else layer.name)
            found[id(layer)] = (path, layer)
            for child in layer._layers:
                visit(child, path)

    visit(model, "")
    return list(found.values())


def innermost(error: BaseException, kind: type[BaseException]) -> BaseException:
    """The first error of a kind that led to this one, or the error itself.

    Keras and AutoGraph wrap what a model's `call` raises, sometimes in another type, and
    bury the message in theirs; the original stays in the chain of contexts.
    """
    found, seen = error, error
    while seen is not None:
        if isinstance(seen, kind):
            found = seen
        seen = seen.__cause__ or seen.__context__
    return found


def inputs_of_failed_check(error: BaseException) -> list[Any]:
    """The inputs of the op in whose output `tf.debugging.enable_check_numerics` saw a NaN.

    The message only prints them, and elides most of a large one. They are a local variable of
    TensorFlow's callback, which is in the error's traceback unless TensorFlow or Keras filters
    it. Empty if the op was part of a graph.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_name == "callback" and code.co_filename.endswith("check_numerics_callback.py"):
            return list(frame.f_locals.get("inputs", ()))
    return []


def seed_states(model: keras.Layer) -> list[tuple[str, keras.Variable]]:
    """`(layer path/seed_generator, state)` of every `keras.random.SeedGenerator` in a model.

    The states are in `model.variables` (public), but under a path that counts all generators
    of the process; which layer owns one is only in `layer._seed_generators`.
    """
    return [
        (f"{path}/seed_generator", generator.state)
        for path, layer in layers_by_path(model)
        for generator in layer._seed_generators
    ]


def optimizer_built_for(optimizer: Any) -> list[Any]:
    """The variables an optimizer was built for, in its order; none if it doesn't say.

    `_trainable_variables` is private, and nothing public tells. The model's trainable
    variables are others once a layer is frozen, or if there are several optimizers.
    """
    return list(getattr(optimizer, "_trainable_variables", ()))


def optimizer_slots(optimizer: Any) -> dict[int, tuple[str, Any]]:
    """`{id(slot): (attribute that holds it, variable that it is for or None)}`.

    Names alone don't tell: Adafactor's slots have only the last part of a path (`kernel`),
    and `a/b` and `a_b` have the same. But every Keras optimizer keeps its slots in lists with
    one entry a variable (or None), in the order of the variables it was built for. That order
    is not documented.
    """
    built_for = optimizer_built_for(optimizer)
    found: dict[int, tuple[str, Any]] = {}
    for attribute, value in vars(optimizer).items():
        if attribute in ("_variables", "_trainable_variables"):
            continue
        if isinstance(value, keras.Variable):
            found.setdefault(id(value), (attribute, None))
        elif isinstance(value, list) and len(value) == len(built_for):
            for variable, slot in zip(built_for, value, strict=True):
                if isinstance(slot, keras.Variable):
                    found[id(slot)] = (attribute, variable)
    return found


def learning_rate_given(optimizer: keras.optimizers.Optimizer) -> Any:
    """A variable, a `LearningRateSchedule` or a function: what `learning_rate` is computed from.

    The public `learning_rate` is computed already, so that one of Keras' schedules, which depend
    on the iterations alone, can't be told from a function, which may depend on anything.
    """
    return optimizer._learning_rate


def adam_moments(optimizer: keras.optimizers.Adam, variable: tf.Variable) -> tuple[Any, Any]:
    """The `tf.Variable`s of a variable's first and second moment.

    `optimizer.variables` (public) has them in an order that isn't documented.
    """
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index].value, optimizer._velocities[index].value


def extend_optimizer(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> None:
    """Builds an optimizer anew for more variables; slots that it has keep their values.

    Keras builds an optimizer once, so a layer that is unfrozen later gets no slots and can't be
    trained. `built` is public; the lists of the variables built for, and of the slots, are not.
    """
    slots = optimizer_slots(optimizer)
    known = {id(v) for v in optimizer_built_for(optimizer)}
    values = {
        (attribute, id(variable)): slot
        for slot in optimizer.variables
        for attribute, variable in [slots.get(id(slot), ("", None))]
        if variable is not None
    }
    others = {k: v for k, v in vars(optimizer).items() if isinstance(v, keras.Variable)}
    gone = {id(slot) for slot in values.values()}
    for slot in [v for v in optimizer._variables if id(v) in gone]:
        optimizer._untrack_variable(slot)
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
    optimizer.build(
        [*optimizer_built_for(optimizer)] + [v for v in variables if id(v) not in known]
    )
    slots = optimizer_slots(optimizer)
    for slot in optimizer.variables:
        attribute, variable = slots.get(id(slot), ("", None))
        if (attribute, id(variable)) in values:
            slot.assign(values[attribute, id(variable)])
    for attribute, variable in others.items():  # made anew by some: Nadam's product of momenta
        if (new := getattr(optimizer, attribute)) is not variable:
            new.assign(variable)
            optimizer._untrack_variable(variable)


def op_determinism() -> bool:
    """Whether `tf.config.experimental.enable_op_determinism` was called; only that is public."""
    return config.is_op_determinism_enabled()


def global_generators(make: Collection[str] = ()) -> dict[str, Any]:
    """The state variables of the process's generators: "tensorflow" and "keras".

    Both are made when first used, and asking for them makes them; whether they are there is not
    public, nor is Keras's.

    Args:
      make: which to make if they aren't there.
    """
    found: dict[str, Any] = {}
    if "tensorflow" in make or stateful_random_ops.global_generator is not None:
        found["tensorflow"] = tf.random.get_global_generator().state
    attribute = seed_generator.GLOBAL_SEED_GENERATOR
    if "keras" in make or global_state.get_global_attribute(attribute) is not None:
        found["keras"] = seed_generator.global_seed_generator().state
    return found
