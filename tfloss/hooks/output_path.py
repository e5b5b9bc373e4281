"""The path that a hook writes to: the given one, or one in the workdir. Host code."""

from pathlib import Path

from tfloss.hooks.base import Hook


def output_path(hook: Hook, given: str | Path | None, name: str, usage: str) -> Path:
    """Returns the path that a hook writes to.

    Args:
      hook: The hook, which has its trainer.
      given: The path that the user gave, or None.
      name: Name of the file or directory in the workdir, for a hook without a path.
      usage: How to give the hook a path, for the error message.

    Raises:
      ValueError: There is neither a path nor a workdir.
    """
    if given is not None:
        return Path(given)
    if hook.trainer.workdir is None:
        raise ValueError(
            f"{type(hook).__name__} has no path to write to. Give the Trainer a workdir, or use "
            f"{usage}."
        )
    return Path(hook.trainer.workdir) / name
