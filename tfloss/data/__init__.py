"""Input: how batches reach the replicas, and `Source`, input with random access.

Nothing is imported before it is used, so that `import tfloss` stays fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfloss.data.source import Source

__all__ = ["Source"]


def __getattr__(name: str) -> Any:
    if name != "Source":
        raise AttributeError(f"module 'tfloss.data' has no attribute {name!r}")
    from tfloss.data.source import Source

    globals()[name] = Source
    return Source
