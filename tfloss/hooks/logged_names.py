"""The names of the curves that a run logs, as far as they are known before its first step.

    names = LoggedNames(trainer.hooks, traced)
    names.lacks("val/acuracy")          # True: an Evaluate hook logs val/accuracy only
    names.suggestion("val_loss")        # " Did you mean 'val/losses/total'?"

Host code.
"""

import difflib
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tfloss.hooks.base import is_own
from tfloss.hooks.callback_checks import is_of_keras
from tfloss.hooks.evaluate import Evaluate

LOSSES, WEIGHTED = "losses/", "weighted_losses/"
TOTAL = "losses/total"  # in each log of training
_OWN_GROUPS = ("input", "time", "watch")  # what tfloss logs beside training
_OWN_NAMES = ("steps_per_second", "examples_per_second")
_SHOWN = 12  # names in a message
_SURE = 0.8  # how alike a name must be for a warning: it may be logged all the same


class LoggedNames:
    """The names that the hooks and the training step of one run log. Host.

    Args:
      hooks: All hooks of the run.
      traced: Tags of the scalars and summaries of the training step. None: it isn't traced yet.
      other_losses: Whether the losses of an evaluation may have other names than those of training,
        as with a `TrainStep` of the user.

    Attributes:
      evaluations: The Evaluate hooks.
      complete: Whether all hooks are known. One of the user may log any name.
      is_traced: Whether the names of the training step are known.
    """

    def __init__(
        self,
        hooks: Sequence[Any],
        traced: Iterable[str] | None = None,
        *,
        other_losses: bool = False,
    ):
        self.evaluations = [hook for hook in hooks if isinstance(hook, Evaluate)]
        callbacks = [one for hook in hooks for one in getattr(hook, "callbacks", ())]
        self.complete = all(
            [*map(is_own, hooks), *(is_of_keras(type(callback)) for callback in callbacks)]
        )
        self.is_traced = traced is not None
        self._traced = [] if traced is None else list(traced)
        losses = [tag.removeprefix(LOSSES) for tag in self._traced if tag.startswith(LOSSES)]
        self._losses: Collection[str] | None = None if traced is None or other_losses else losses

    def evaluated(self, name: str) -> bool:
        """Returns whether an evaluation logs a name, as far as that is known."""
        return any(self._logs(hook, name) for hook in self.evaluations)

    def lacks(self, name: str) -> bool:
        """Returns whether nothing that is known logs a name.

        A summary of the model may have any name. So before the step is traced, only names that
        begin as those of an evaluation do can be missing, and not those of training's losses.
        """
        if self.evaluated(name):
            return False
        group = name.split("/")[0]
        if not self.is_traced:
            trained = f"{group}/" in (LOSSES, WEIGHTED)
            return not trained and any(name.startswith(f"{h.name}/") for h in self.evaluations)
        return not (name in self._traced or name in _OWN_NAMES or group in _OWN_GROUPS)

    def doubts(self, name: str) -> bool:
        """Returns whether a name is most likely a typing error, though it may be logged.

        A metric that names its results itself doesn't know all of the names in advance.
        """
        known = [one for hook in self.evaluations for one in hook.known_names()]
        if any(f"{name}/".startswith(f"{one}/") for one in known):
            return False
        unsure = any(hook.names_itself for hook in self.evaluations if hook.logs(name))
        return unsure and bool(difflib.get_close_matches(name, known, 1, _SURE))

    def names(self) -> list[str]:
        """Returns the known names: first those of evaluations, then those of training."""
        found = [name for hook in self.evaluations for name in hook.known_names()]
        for hook in self.evaluations:
            if hook.losses and self._losses is not None:
                found += [f"{hook.name}/{LOSSES}{loss}" for loss in self._losses]
        return list(dict.fromkeys([*found, *self._traced]))

    def suggestion(self, name: str, *, keras: bool = False, cutoff: float = 0.6) -> str:
        """Returns a sentence with the nearest name, or an empty text.

        Args:
          name: The name that nothing logs. It may be as Keras writes it, `val_loss`.
          keras: Whether the suggestion is to be a name as Keras writes it.
          cutoff: How alike the names must be, from 0 to 1.
        """
        prefixes = [hook.name for hook in self.evaluations]
        shown: dict[str, str] = {}
        for one in self.names():
            as_keras = keras_name(one, prefixes)
            for written in (one, as_keras):  # the total comes before a loss named "loss"
                shown.setdefault(written, as_keras if keras else one)
        close = difflib.get_close_matches(name, shown, 1, cutoff)
        return f" Did you mean {shown[close[0]]!r}?" if close else ""

    def refuse(self, owner: str, name: str, *, sure: bool = True, keras: bool = False) -> bool:
        """Refuses a name that nothing logs. Only warns of a typing error if something may log it.

        Args:
          owner: Class name of what follows the name.
          name: The name.
          sure: Whether nothing known logs it. It is refused only then, and if all hooks are known.
          keras: Whether `owner` is a callback of Keras, which knows the names as Keras writes them.

        Returns:
          Whether there was a warning: a name is near.

        Raises:
          ValueError: All names are known. The message has the nearest one.
        """
        prefixes = [hook.name for hook in self.evaluations]
        known = [keras_name(one, prefixes) if keras else one for one in self.names()]
        shown = ", ".join(known[:_SHOWN]) + f" and {len(known) - _SHOWN} more" * (
            len(known) > _SHOWN
        )
        certain = sure and self.complete
        near = self.suggestion(name, keras=keras, cutoff=0.6 if certain else _SURE)
        who, they = (
            ("nothing", "The run logs") if self.is_traced else ("no Evaluate hook", "They log")
        )
        text = (
            f"{owner} monitors {name!r}, which {who} logs.{near} {they}: {shown or 'nothing'}."
            f"{self.advice(name)}"
        )
        if certain:
            raise ValueError(text)
        if near:
            warnings.warn(
                f"{text} Unless something else logs it, {owner} does nothing.", stacklevel=2
            )
        return bool(near)

    def advice(self, name: str) -> str:
        """Returns a sentence on what may be missing: an evaluation, or the losses of one."""
        alike = [h for h in self.evaluations if name.startswith((f"{h.name}/", f"{h.name}_"))]
        if "loss" in name and alike and not any(hook.losses for hook in alike):
            return " Its losses need Evaluate(..., losses=True)."
        if not self.evaluations:
            return " Metrics of a validation set need an Evaluate hook."
        return ""

    def _logs(self, hook: Evaluate, name: str) -> bool:
        """Whether an evaluation logs a name. Its losses are those of training."""
        if not hook.logs(name):
            return False
        prefix = f"{hook.name}/{LOSSES}"
        if self._losses is None or not hook.is_loss(name) or hook.names_itself:
            return True
        return name.removeprefix(prefix) in self._losses


def keras_name(tag: str, prefixes: Iterable[str]) -> str:
    """Returns the name that Keras's callbacks know a curve by: `val_loss` for `val/losses/total`.

    Args:
      tag: The name as logged.
      prefixes: The names of the evaluations.
    """
    prefix = max((one for one in prefixes if tag.startswith(f"{one}/")), key=len, default=None)
    rest = tag if prefix is None else tag.removeprefix(f"{prefix}/")
    rest = "loss" if rest == TOTAL else rest.removeprefix(LOSSES)
    if prefix is None:
        return rest
    return f"{prefix}_{rest}" if rest else prefix
