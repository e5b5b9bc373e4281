"""The base class of hooks: what happens beside training, at exactly the steps it asks for.

    class Greet(Hook):
        every = Every(steps=100)
        def after_step(self, step): print(step, self.trainer.model.name)

All methods of a hook run on the host, between calls of the training step. Training waits while a
hook reads values from the device.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tfloss.hooks.every import Every, OnSteps
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.summary import Summary


class Hook:
    """The base class of hooks. Every method is optional, and `super()` need not be called.

    Each method is called on all hooks in the order of their list. So a hook that produces values
    (Evaluate) stands before the one that uses them. There are two exceptions, in `after_step` and
    `after_train`, wherever the hooks stand: those with `uses_results` are called after the others,
    and those that save checkpoints are called last, because a checkpoint holds the state of every
    hook.

    Attributes:
      every: When `after_step` is due. None: never.
      state: What checkpoints keep: numbers, strings, None, NumPy values, and lists, tuples, sets
        and dicts of these, with any keys. The trainer restores it before `before_train`. Put
        everything here that `on_log` and `after_step` must remember after a restart.
      arguments: `{argument: text}`, as the hook was made. They tell hooks of one class apart when a
        checkpoint is restored, in whatever order the hooks stand.
      trainer: The trainer, which sets it before `before_train`. `TrainerProtocol` lists what a hook
        may use.
      time_bucket: What the hook's time counts as: "hooks" or "checkpoint".
      async_logs: Whether `on_log` may be called up to a second after its step, for several steps in
        a row. This suits hooks that write or show values, and never stop training. If all hooks
        that have an `on_log` allow it, the compiled loop is not interrupted at each log.
      uses_results: Whether `after_step` and `after_train` are called after those of the hooks that
        produce results.
      chief_only: Whether only the first of several workers calls the hook, as writers need. Other
        hooks are called on all workers, and must do together what all must do: evaluate, save.
    """

    every: Every | OnSteps | None = None
    time_bucket: str = "hooks"
    async_logs: bool = False
    uses_results: bool = False
    chief_only: bool = False
    state: dict[str, Any]
    arguments: Mapping[str, str]
    trainer: TrainerProtocol
    _own: bool = False

    def __init_subclass__(cls, own: bool = False, **options: Any) -> None:
        """Has the hooks of tfloss raise errors of their arguments without lines of tfloss.

        Args:
          own: Whether the class is one of tfloss's own. Its subclasses are not, unless they say so.
          **options: Options of other base classes.
        """
        super().__init_subclass__(**options)
        cls._own = own
        if own and "__init__" in vars(cls):
            initializer: Any = filtered_tracebacks(vars(cls)["__init__"])
            setattr(cls, "__init__", initializer)  # noqa: B010 - a type checker refuses the other

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Gives each hook a state of its own, even if its `__init__` does not call `super()`."""
        hook = super().__new__(cls)
        hook.state = {}
        hook.arguments = _arguments(hook, args, kwargs)
        return hook

    def before_train(self) -> None:
        """Runs once in a call of `train`: after restoring a checkpoint, before the first step."""

    def after_step(self, step: int) -> None:
        """Runs at exactly the due steps.

        Args:
          step: The number of completed updates.
        """

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Runs whenever values are logged.

        With `Trainer(log_every_step=True)` and with `async_logs` it is called for several steps in
        a row; the summaries come with the last of them.

        Args:
          step: The step that the values belong to.
          scalars: `{tag: value}`.
          summaries: Other summaries: histograms, images, texts.
        """

    def before_save(self, step: int) -> None:
        """Runs before a checkpoint is written. Flush to the disk what was logged so far.

        Args:
          step: The number of completed updates.
        """

    def dry_run(self, directory: Path) -> Sequence[str]:
        """Does once what the hook does, as far as `--dry_run` may: of one batch, without traces.

        It is called in place of all others, after one training step. An error ends the dry run.

        Args:
          directory: An empty directory, which is deleted afterwards.

        Returns:
          Lines that say what was done. None by default: nothing is done.
        """
        return ()

    def after_train(self) -> None:
        """Runs once in a call of `train`, also after an error: `trainer.error` is it, or None."""


def is_own(hook: Hook) -> bool:
    """Returns whether a hook is of a class of tfloss, which logs no names but known ones."""
    return bool(vars(type(hook)).get("_own"))


def _arguments(hook: Hook, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Returns `{argument: text}` of the arguments that a hook is made with, defaults included."""
    try:
        bound = inspect.signature(hook.__init__).bind(*args, **kwargs)
    except (TypeError, ValueError):  # `__init__` raises an error of its own, or takes anything
        return {str(key): _text(value) for key, value in (*enumerate(args), *kwargs.items())}
    bound.apply_defaults()
    return {name: _text(value) for name, value in bound.arguments.items()}


def _text(value: Any) -> str:
    """Describes an argument by what is the same in each process: values, or the name of a class."""
    if value is None or isinstance(value, bool | int | float | str | bytes | Every | OnSteps):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return getattr(value, "__qualname__", type(value).__qualname__)
