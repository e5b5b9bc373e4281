"""What all balancers of losses have in common: names, variables, and their place in a step.

A balancer is given to a trainer in place of fixed loss weights:

    tfloss.Trainer(model, optimizer, loss_weights=tfloss.balancing.GradNorm(["box", "class"]))

It knows the losses by their names, values and gradients only. It may multiply them by weights
(`apply`), change those weights after an update (`update`), and change the gradient of the update
(`factors`).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint import named_optimizer_variables
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError, ModelError
from tfloss.forward.losses import LossWeights, Weight
from tfloss.optimizers.groups import Group

PREFIX = "loss_weights"  # of the names in a checkpoint, and of curves


@dataclasses.dataclass(frozen=True)
class GradientProducts:
    """Scalar products of the gradients of losses, on the variables that several of them reach.

    Attributes:
      losses: Names of the losses.
      products: float32 [losses, losses]. The diagonal has the squared norms.
    """

    losses: tuple[str, ...]
    products: tf.Tensor


class Balancer(LossWeights):
    """The base class of balancers.

    A balancer belongs to one trainer: it has the state of its run.

    Args:
      losses: Names of the losses to balance, as they are logged, without `losses/`. None: all.
        Losses that are not listed keep their weight.
      weights: Fixed weights or schedules, as `Trainer(loss_weights={...})` takes them. The losses
        are multiplied by them first.
      shared: Glob of the variables on which the gradient of each loss is needed. None: it isn't.

    Attributes:
      losses: The names, or None.
      shared: The argument.

    Raises:
      LossError: There are fewer than two names, or one is given twice.
    """

    def __init__(
        self,
        losses: Sequence[str] | None,
        weights: Mapping[str, Weight] | None,
        shared: str | None = None,
    ):
        super().__init__(weights)
        self.losses = None if losses is None else _checked_names(losses, type(self).__name__)
        self.shared = shared
        self._built_by: Any = None

    def build(self, owner: Any) -> None:
        """Creates the variables, unless they exist. Host code, in the strategy's scope.

        Args:
          owner: The training step that the balancer belongs to.

        Raises:
          ModelError: The balancer belongs to another step.
        """
        name = type(self).__name__
        if self._built_by is None:
            self._built_by = owner
            self.create_variables()
        if self._built_by is not owner:
            raise ModelError(
                f"This {name} belongs to another Trainer, whose state it has. Make a new one: "
                f"Trainer(loss_weights={name}(...))."
            )

    def create_variables(self) -> None:
        """Creates the variables. Host code, in the strategy's scope."""

    def state(self) -> dict[str, Any]:
        """Returns the variables by their names in a checkpoint."""
        return {}

    def scalars(self) -> dict[str, tf.Tensor]:
        """Returns what is logged at every step: `{tag: float32 scalar}`. Cross-replica, traced."""
        return {}

    def factors(self, gradients: GradientProducts, step: tf.Tensor) -> tf.Tensor | None:
        """Returns by what the gradient of each loss is multiplied. Replica code, traced.

        Args:
          gradients: The scalar products of the gradients of all of its losses in this pass.
          step: int64 scalar, the number of completed updates.

        Returns:
          float32 [losses]; None: the gradients stay as they are.
        """
        return None

    def update(
        self,
        losses: Mapping[str, tf.Tensor],
        gradients: GradientProducts | None,
        step: tf.Tensor,
    ) -> None:
        """Changes the state after an update of the model. Replica code, traced.

        Args:
          losses: The losses of the pass by name, without weights, as means over the global batch.
          gradients: The same as in `factors`; None without `shared`, and in passes that update
            none of these variables.
          step: int64 scalar, the number of completed updates.
        """

    def must_be_finite(self, losses: Mapping[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, str]]:
        """Returns numbers that must be finite, or there is no update. Cross-replica, traced.

        Args:
          losses: The same as in `update`.

        Returns:
          `{tag: (float32 scalar, what to say if it isn't finite)}`.
        """
        return {}

    def balanced(self, losses: Iterable[str]) -> tuple[str, ...]:
        """Returns which of the losses of a forward pass are balanced, in the balancer's order."""
        found = list(losses)
        return tuple(found if self.losses is None else (x for x in self.losses if x in found))

    def check_all_used(self, curves: Mapping[str, str]) -> None:
        """Checks that every name is that of a loss, and every pattern of a weight matches one.

        Args:
          curves: See `LossWeights.check_all_used`.

        Raises:
          LossError: A name or pattern matches none.
        """
        super().check_all_used(curves)
        for name in self.losses or ():
            if name not in curves:
                raise LossError(
                    f"{type(self).__name__} balances {name!r}, but there is no such loss. The "
                    f"losses are: {', '.join(curves)}."
                )

    def signature(self) -> tuple[Any, ...]:
        """Returns a value that differs if the weights do, so that a step must be traced again."""
        return (*super().signature(), type(self).__name__, *self.arguments().items())

    def described(self) -> dict[str, Any]:
        """Returns class, arguments and weights as JSON values, to compare several workers."""
        return {
            "class": type(self).__qualname__,
            **self.arguments(),
            "weights": super().described(),
        }

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that the traced step depends on, as JSON values."""
        return {"losses": None if self.losses is None else ", ".join(self.losses)}


class TrainedWeights(Balancer):
    """The base class of balancers with one trained number for each loss.

    Args:
      losses: See `Balancer`.
      weights: See `Balancer`.
      shared: See `Balancer`.
      optimizer: The optimizer of these numbers. A copy is made from its configuration, so it
        needs no strategy's scope, and may be that of the model.
      initial: Their initial value.
      kind: What they are called in a checkpoint.

    Attributes:
      optimizer: The optimizer.
    """

    def __init__(
        self,
        losses: Sequence[str],
        weights: Mapping[str, Weight] | None,
        optimizer: keras.optimizers.Optimizer,
        *,
        initial: float,
        kind: str,
        shared: str | None = None,
    ):
        super().__init__(losses, weights, shared)
        self.optimizer = Group(optimizer).optimizer  # refuses what can't be used
        self._initial, self._kind = initial, kind
        self._numbers: dict[str, Any] = {}

    def create_variables(self) -> None:
        """Creates the numbers, and the slots of their optimizer."""
        self._numbers = self.new_variables(self._kind, self._initial)
        self.optimizer = type(self.optimizer).from_config(self.optimizer.get_config())
        self.optimizer.build([*self._numbers.values()])

    def state(self) -> dict[str, Any]:
        """Returns the numbers, and the variables of their optimizer but for its rate."""
        found = {f"{PREFIX}/{self._kind}/{k}": v for k, v in self._numbers.items()}
        if self._numbers:
            for name, variable in named_optimizer_variables(self.optimizer).items():
                if name != "learning_rate":  # that is configuration
                    found[f"{PREFIX}/optimizer/{name}"] = variable
        return found

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that the traced step depends on, as JSON values."""
        return {**super().arguments(), "optimizer": type(self.optimizer).__name__}

    def train(self, gradients: Mapping[str, tf.Tensor]) -> None:
        """Moves numbers by their gradients. Replica code, traced.

        Args:
          gradients: `{loss: derivative of what is minimised by its number}`, the same on all
            replicas.
        """
        with _upstream.gradients_already_reduced(self.optimizer):
            variables = [self._numbers[name] for name in gradients]
            self.optimizer.apply([*gradients.values()], variables)

    def number(self, name: str) -> tf.Tensor:
        """Returns the number of a loss, float32 scalar. Traced."""
        return tf.convert_to_tensor(self._numbers[name].value)

    def new_variables(self, kind: str, value: float) -> dict[str, Any]:
        """Creates a float32 scalar for each loss. Host code, in the strategy's scope.

        Args:
          kind: What they are called.
          value: Their initial value.
        """
        found, taken = {}, set[str]()
        for loss in self.losses or ():
            name = unique_name(f"{kind}_{re.sub('[^A-Za-z0-9_.]', '_', loss)}", taken)
            taken.add(name)
            found[loss] = keras.Variable(
                value,
                dtype="float32",
                trainable=False,  # not by the gradients of the model
                name=name,
                aggregation="only_first_replica",
            )
        return found


def _checked_names(losses: Any, owner: str) -> tuple[str, ...]:
    if isinstance(losses, str) or not all(isinstance(name, str) for name in losses):
        raise LossError(
            f"{owner} needs a list of names of losses, got {losses!r}. Write "
            f"{owner}(['box', 'class'])."
        )
    names = tuple(losses)
    if len(names) < 2 or len(set(names)) < len(names):
        raise LossError(f"{owner} needs at least two different losses, got {', '.join(names)}.")
    return names
