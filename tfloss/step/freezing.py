"""Layers and variables that are frozen for a part of a run, by globs of their paths. Host code.

A frozen variable is not trained. A layer all of whose weights are frozen has `trainable=False`, as
Keras has it: BatchNormalization is then in inference mode. Optimizers are built for frozen
variables too, so that a checkpoint holds the same slots before and after the thaw.
"""

from typing import Any

import keras

from tfloss import _upstream
from tfloss.optimizers.variable_globs import matches, matching


class Freezing:
    """What of a model is frozen now. Outside of it, the trainable flags are the user's.

    Args:
      model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._globs: list[str] = []
        # The flags before the first freeze, parents first: of layers, then of variables.
        self._flags: dict[int, tuple[Any, bool]] = {}

    @property
    def globs(self) -> tuple[str, ...]:
        """The globs of what is frozen now. If they change, the step is traced again."""
        return tuple(self._globs)

    def freeze(self, glob: str, owner: str) -> None:
        """Freezes the variables that a glob matches, and the layers that have no others.

        Args:
          glob: The glob of paths (`tfloss.optimizers.variable_globs`).
          owner: Who freezes them, for messages.

        Raises:
          ValueError: The glob matches no variable, only variables that the script has frozen, or
            everything that could be trained.
        """
        model = self._model
        found = matching(glob, model.weights, model, owner, "variable of the model")
        trainable = {id(variable) for variable in self._trainable()}
        if not trainable.intersection(map(id, found)):
            raise ValueError(
                f"{owner} would thaw nothing: {found[0].path!r} and all other variables that it "
                "matches are not trainable. It freezes them itself until its step, so remove "
                "trainable=False from the script."
            )
        self._globs.append(glob)
        self._apply()
        if not model.trainable_variables:
            self.thaw(glob)
            raise ValueError(
                f"{owner} would freeze every trainable variable, so that nothing is left to train."
            )

    def thaw(self, glob: str) -> None:
        """Gives back the flags of what a glob has frozen, unless another glob still freezes it.

        Args:
          glob: A glob that was given to `freeze`. Others are ignored.
        """
        if glob in self._globs:
            self._globs.remove(glob)
            self._apply()

    def variables(self) -> list[Any]:
        """Returns the Keras variables that are frozen now."""
        return list(filter(self._frozen, self._model.weights))

    def _frozen(self, variable: Any) -> bool:
        return any(matches(glob, variable, self._model) for glob in self._globs)

    def _trainable(self) -> list[Any]:
        """The variables that are trainable, or would be without this object."""
        globs, self._globs = self._globs, []
        self._apply()
        found = list(self._model.trainable_variables)
        self._globs = globs
        self._apply()
        return found

    def _apply(self) -> None:
        """Sets the flags that the globs ask for."""
        # To set a layer's flag sets those of its parts, which are set to their own after it.
        for one, flag in self._flags.values():
            one.trainable = flag
        self._flags.clear()
        if not self._globs:
            return
        layers = [
            layer
            for _, layer in _upstream.layers_by_path(self._model)
            if layer.weights and all(map(self._frozen, layer.weights))
        ]
        parts = [part for layer in layers for _, part in _upstream.layers_by_path(layer)]
        variables = [v for part in parts for v in part.weights]
        variables += self.variables()
        for one in (*parts, *variables):
            self._flags.setdefault(id(one), (one, one.trainable))
        for one in (*layers, *variables):
            one.trainable = False
