"""What tfloss needs to know about `tf.summary`."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import tensorflow as tf
from keras.src.backend.common.name_scope import current_path  # of the layer being called

from tfloss._upstream.patching import replaced


@contextlib.contextmanager
def intercept_tf_summary(observe: Callable[[str, Any, Any], bool]) -> Generator[None]:
    """Passes every `tf.summary.*` call to `observe(tag, tensor, metadata)` first.

    All of `tf.summary.scalar`, `image`, ... (they live in TensorBoard) end in `tf.summary.write`,
    which they look up at call time in `tf` or `tf.compat.v2`. A writer in the graph would freeze
    step and writer at trace time, write once per replica or not at all, and not compile under XLA.
    `summary_scope` makes tags of the graph's name scopes (`while/replica_1/net_1_1/act`); here it
    is replaced to use the path of the layer being called (`net/act`), the same in every trace.

    Args:
      observe: Returns True if it has taken the summary. `tensor` may be a function that makes it.

    Yields:
      None.
    """

    def make_write(original: Any) -> Any:
        def write(
            tag: str, tensor: Any, step: Any = None, metadata: Any = None, name: str | None = None
        ) -> Any:
            if observe(tag, tensor, metadata):
                return tf.constant(True)
            return original(tag, tensor, step=step, metadata=metadata, name=name)

        return write

    def make_scope(original: Any) -> Any:
        @contextlib.contextmanager
        def summary_scope(
            name: str, default_name: str = "summary", values: Any = None
        ) -> Generator[tuple[str, str]]:
            with original(name, default_name, values) as (_, scope):
                path = current_path()
                yield f"{path}/{name}" if path else name, scope

        return summary_scope

    with contextlib.ExitStack() as stack:
        for module in (tf.summary, tf.compat.v2.summary):
            stack.enter_context(replaced(module, "write", make_write))
            stack.enter_context(replaced(module.experimental, "summary_scope", make_scope))
        yield
