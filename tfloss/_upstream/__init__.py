"""Every undocumented behaviour of TensorFlow and Keras that tfloss depends on.

Each function says what it uses and why nothing public does. A test in `tests/_upstream` with the
name of the module fails when upstream changes.
"""

from tfloss._upstream.error_messages import (
    caused_by_merge_call,
    caused_by_missing_deterministic_kernel,
    caused_by_unequal_shapes_in_concat,
    failed_numerics_check,
    find_cause,
    raised_by_iterator,
)
from tfloss._upstream.input_pipelines import (
    dataset_graphs,
    dataset_order,
    dataset_seeds,
    datasets_below,
    next_in_this_thread,
)
from tfloss._upstream.keras_builds import built_eagerly, has_unbuilt_parts
from tfloss._upstream.keras_layers import (
    in_scratch_graph,
    inputs_untouched,
    intercept_add_loss,
    intercept_losses,
    layers_by_path,
    losses_not_divided,
    mask_of,
    no_autocast,
    seed_states,
    weights_with_mask,
    with_mask,
    with_sublayers,
)
from tfloss._upstream.keras_metrics import copy_metric, metric_mode
from tfloss._upstream.keras_optimizers import (
    adam_moments,
    extend_optimizer,
    gradients_already_reduced,
    optimizer_built_for,
    optimizer_slots,
)
from tfloss._upstream.keras_states import (
    LOOKUP_LAYERS,
    derived_state,
    finalize_states,
    idf_weights,
    lookup_in,
    overridden,
    rnn_states,
    set_vocabulary,
)
from tfloss._upstream.op_kinds import (
    COLLECTIVE_OPS,
    PYTHON_OPS,
    REF_VARIABLE_WRITE_OPS,
    SUMMARY_OPS,
    TABLE_WRITE_OPS,
    VARIABLE_WRITE_OPS,
    op_state,
    op_state_by_definition,
    ops_without_xla_kernel,
)
from tfloss._upstream.patching import replaced
from tfloss._upstream.random_generators import (
    global_generators,
    keras_generator,
    keras_generator_of_strategy,
    keras_generator_states,
    op_determinism_enabled,
)
from tfloss._upstream.strategies import as_single_replica
from tfloss._upstream.tf_summary import intercept_tf_summary
from tfloss._upstream.traced_graphs import (
    called_graph,
    captured_handles,
    captured_here,
    evaluated,
    gradient_is_recorded,
    is_autograph_file,
    made_by_dropout,
    own_function_traces,
    terms_of_gradient,
)
from tfloss._upstream.training_mode import LayerCalls, layer_modes

__all__ = [
    "LOOKUP_LAYERS",
    "derived_state",
    "finalize_states",
    "idf_weights",
    "overridden",
    "rnn_states",
    "set_vocabulary",
    "COLLECTIVE_OPS",
    "LayerCalls",
    "PYTHON_OPS",
    "REF_VARIABLE_WRITE_OPS",
    "SUMMARY_OPS",
    "TABLE_WRITE_OPS",
    "VARIABLE_WRITE_OPS",
    "adam_moments",
    "as_single_replica",
    "built_eagerly",
    "intercept_add_loss",
    "called_graph",
    "captured_handles",
    "captured_here",
    "caused_by_merge_call",
    "caused_by_missing_deterministic_kernel",
    "caused_by_unequal_shapes_in_concat",
    "copy_metric",
    "dataset_graphs",
    "dataset_order",
    "dataset_seeds",
    "datasets_below",
    "evaluated",
    "extend_optimizer",
    "failed_numerics_check",
    "find_cause",
    "global_generators",
    "gradient_is_recorded",
    "gradients_already_reduced",
    "has_unbuilt_parts",
    "in_scratch_graph",
    "inputs_untouched",
    "intercept_losses",
    "is_autograph_file",
    "layer_modes",
    "keras_generator",
    "keras_generator_of_strategy",
    "keras_generator_states",
    "layers_by_path",
    "lookup_in",
    "losses_not_divided",
    "made_by_dropout",
    "mask_of",
    "metric_mode",
    "next_in_this_thread",
    "no_autocast",
    "op_determinism_enabled",
    "op_state",
    "op_state_by_definition",
    "ops_without_xla_kernel",
    "optimizer_built_for",
    "optimizer_slots",
    "own_function_traces",
    "raised_by_iterator",
    "replaced",
    "seed_states",
    "with_sublayers",
    "terms_of_gradient",
    "intercept_tf_summary",
    "weights_with_mask",
    "with_mask",
]
