"""Which tensors of a batch hold examples, and what an example is. Host code, or traced.

Without a declaration, the examples of a batch lie along the first dimension of all its tensors.
Scalars and None belong to all examples. If first dimensions differ, shapes can't tell what a tensor
is: 4 labelled beside 12 unlabelled images are divided over replicas, class weights beside a batch
are not, and a graph's nodes and edges can't be. So nothing is divided then unless it is declared.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfloss.data import batches
from tfloss.errors import DataError

UNCLEAR = "The first dimensions of a batch's tensors differ"
_STEP = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^]'\"]+))\]|\.(\w+)")


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """Declares what the first dimensions of a batch's tensors are.

        Trainer(..., batch_layout=BatchLayout(examples="labelled", whole="class_weight"))

    Names are keys, indices or fields, joined by "/": `labelled`, `labelled/image`, `0`. They may
    have wildcards, and a name stands for all tensors below it.

    Args:
      examples: Names of the tensors whose first dimension counts the examples. It must be the same
        in all of them. Every other tensor that is neither a scalar nor whole is then divided by
        its own first dimension: into equal parts if the number of replicas divides both it and
        the number of examples, else into a constant number of rows for each example.
      whole: Names of the tensors that belong to no single example, such as class weights or
        anchors. Each replica gets all of them.

    Attributes:
      examples, whole: The arguments, as tuples.

    Raises:
      ValueError: A name is not a string.
    """

    examples: str | Sequence[str] = ()
    whole: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("examples", "whole"):
            given: Any = getattr(self, field)
            names = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"BatchLayout({field}=...) takes names of tensors, got {given!r}.")
            object.__setattr__(self, field, names)

    def check_names(self, spec: Any) -> None:
        """Checks that every declared name is that of a tensor. Host code.

        Args:
          spec: Nest of `tf.TypeSpec`s of a batch.

        Raises:
          DataError: A name is not.
        """
        paths = [path for path, _ in batches.open_nest(spec, "batch")[0]]
        for field in ("examples", "whole"):
            for name in getattr(self, field):
                if not any(_matches(path, [name]) for path in paths):
                    raise DataError(
                        f"BatchLayout({field}={name!r}) names no tensor of a batch. The names are "
                        f"{', '.join(repr(tensor_name(path)) for path in paths)}."
                    )
        scalars = [path for path in paths if _matches(path, self.examples)]
        for path in set(scalars) - set(self.static_sizes(spec)):
            raise DataError(
                f"BatchLayout(examples={tensor_name(path)!r}): {path} is a scalar or whole, so it "
                "can't count the examples. Name a tensor whose first dimension does."
            )

    def is_whole(self, path: str) -> bool:
        """Whether a tensor was declared whole.

        Args:
          path: Its path, as `batches.open_nest(batch, "batch")` gives it.
        """
        return _matches(path, self.whole)

    def sizes(self, batch: Any) -> dict[str, Any]:
        """Returns the first dimension of each tensor that is divided, by path.

        Args:
          batch: Nest of tensors, traced or not.

        Returns:
          An int where it is known statically, else an int32 scalar.
        """
        leaves = batches.open_nest(batch, "batch")[0]
        return {path: batches.rows(leaf) for path, leaf in self.divided(leaves)}

    def static_sizes(self, spec: Any) -> dict[str, int | None]:
        """Returns the same as `sizes`, of specs: an int, or None if it is unknown."""
        leaves = batches.open_nest(spec, "batch")[0]
        return {path: batches.static_rows(leaf) for path, leaf in self.divided(leaves)}

    def divided(self, leaves: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Returns those of the leaves of a batch that are divided."""
        return [(p, leaf) for p, leaf in leaves if batches.has_rows(leaf) and not self.is_whole(p)]

    def counting(self, sizes: Mapping[str, Any]) -> list[str]:
        """Returns the paths whose first dimension was declared to count the examples."""
        return [path for path in sizes if _matches(path, self.examples)]

    def count(self, batch: Any) -> Any:
        """Returns a number that is proportional to the examples in a batch, for weights.

        Args:
          batch: Nest of tensors, traced or not.

        Returns:
          An int if it is known statically, else an int32 scalar. None if nothing is divided.
        """
        return self.count_of(self.sizes(batch))

    def count_of(self, sizes: Mapping[str, Any]) -> Any:
        """Returns the same as `count`, from the result of `sizes`.

        It is the number of examples, unless first dimensions differ or are unknown and nothing is
        declared: then it is their sum.
        """
        declared = self.counting(sizes)
        numbers = [sizes[path] for path in declared or sizes]
        if not numbers:
            return None
        if declared or all(isinstance(x, int) and x == numbers[0] for x in numbers):
            return numbers[0]
        return sum(numbers[1:], numbers[0])

    def static_count(self, spec: Any) -> int | None:
        """Returns the number of examples in a batch if its specs tell, else None."""
        sizes = self.static_sizes(spec)
        numbers = {sizes[path] for path in self.counting(sizes) or sizes}
        return numbers.pop() if len(numbers) == 1 else None

    def unclear(self, sizes: Sequence[Mapping[str, int]]) -> str | None:
        """Returns why the batches' numbers of examples can't be compared; None if they can be.

        If nothing is declared, they can if the first dimensions of all tensors are in the same
        proportion to each other in all batches.

        Args:
          sizes: For each batch, the result of `sizes`.
        """
        if self.counting(sizes[0]) or len(sizes[0]) < 2:
            return None
        rows = [list(one.values()) for one in sizes]
        if in_proportion(rows):
            return None
        other = next(one for one in sizes if not in_proportion([rows[0], list(one.values())]))
        return self.unclear_text([sizes[0], other])

    def unclear_text(self, sizes: Sequence[Mapping[str, Any]]) -> str:
        """Returns the message for batches that can't be compared."""
        return (
            f"{UNCLEAR}, and not in the same proportion in all batches, so it is unclear how much "
            f"each batch counts: {', then '.join(map(listed, sizes))}. {cure(sizes[0])}"
        )


ROWS_ARE_EXAMPLES = BatchLayout()
"""Nothing is declared: the first dimension of each tensor is that of the batch."""


def in_proportion(rows: Sequence[Sequence[int]]) -> bool:
    """Whether all rows of a matrix are multiples of each other."""
    sums, total = [sum(row) for row in rows], sum(map(sum, rows))
    columns = [sum(column) for column in zip(*rows, strict=True)]
    return all(
        size * total == row_sum * column
        for row, row_sum in zip(rows, sums, strict=True)
        for size, column in zip(row, columns, strict=True)
    )


def listed(sizes: Mapping[str, Any]) -> str:
    """Returns tensors and their first dimensions for a message."""
    return ", ".join(f"{path} {size}" for path, size in sizes.items())


def cure(sizes: Mapping[str, Any]) -> str:
    """Returns the advice for a batch whose first dimensions differ."""
    names = ", ".join(repr(tensor_name(path)) for path in sizes)
    return (
        "Say what they are: Trainer(batch_layout=tfloss.data.BatchLayout(examples=..., "
        f"whole=...)), with the names {names}. Those in whole, such as class weights, belong to "
        "no single example. Every other tensor is divided by its own first dimension, and "
        "examples names those that count the examples."
    )


def tensor_name(path: str) -> str:
    """Returns the name of a path: `labelled/image` for `batch['labelled'].image`."""
    steps = _STEP.findall(path.removeprefix("batch"))
    return "/".join(next(filter(None, step), "") for step in steps)


def _matches(path: str, names: Sequence[str]) -> bool:
    name = tensor_name(path)
    return any(fnmatch.fnmatchcase(name, x) or fnmatch.fnmatchcase(name, f"{x}/*") for x in names)
