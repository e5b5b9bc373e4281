"""Input with random access, and `BatchLayout`, how batches reach the replicas.

Nothing is imported before it is used, so that `import tfloss` stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfloss.data.batch_layout import BatchLayout
    from tfloss.data.batch_source import BatchSource
    from tfloss.data.source import Source

_WHERE = {"BatchLayout": "batch_layout", "BatchSource": "batch_source", "Source": "source"}

__all__ = ["BatchLayout", "BatchSource", "Source"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tfloss.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfloss.data.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
