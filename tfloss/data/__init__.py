"""Data: how batches reach the replicas, and the data sets of the examples.

`Source` is input that knows where it is. Each data set is a TFDS builder in a module of its own;
importing the module registers its name. Nothing is imported here before it is used, so that
`import tfloss` doesn't pull in TensorFlow Datasets.
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
