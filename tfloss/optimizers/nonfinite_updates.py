"""Which updates carry a gradient that is not finite on to the weights.

Where every update does, the weights can be checked once after many steps, in place of the gradients
at each: the state of a bad step stays bad. In a compiled loop of small kernels, the check of
each gradient takes a noticeable part of a step.
"""

from collections.abc import Iterable
from typing import Any

import keras

from tfloss.optimizers.groups import Group

# A NaN or an infinity in a gradient is one in the weights after one update of these. It is not
# with Lion, which takes the sign. Subclasses may do anything.
_CARRY_ON = frozenset(
    {
        keras.optimizers.SGD,
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adamax,
        keras.optimizers.Adagrad,
        keras.optimizers.Adadelta,
        keras.optimizers.Nadam,
        keras.optimizers.RMSprop,
        keras.optimizers.Lamb,
    }
)


def weights_tell(groups: Iterable[Group], weights: Iterable[Any]) -> bool:
    """Returns whether a gradient that is not finite always makes finite weights non-finite.

    Args:
      groups: The optimizer groups.
      weights: Keras variables that they update.
    """
    for group in groups:
        if type(group.optimizer) not in _CARRY_ON or group.optimizer.clipvalue is not None:
            return False
    # A constraint may turn NaN into 0.
    return all(one.constraint is None for one in weights)
