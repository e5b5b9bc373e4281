"""The states of hooks in a checkpoint, and which hook of a later run each one belongs to. Host.

A script may list its hooks in another order, add some or change their arguments. So a checkpoint
holds the arguments of each hook beside its state. A hook gets the state of the hook of its class
that had the same arguments, or else the most similar ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tfloss.checkpoint.json_codec import decode, encode
from tfloss.common.unique_names import unique_name
from tfloss.hooks.base import Hook

States = Mapping[str, Mapping[str, Any]]
Arguments = Mapping[str, Mapping[str, str]]


def named(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Returns `{class name: hook}`; further hooks of a class are numbered: `Evaluate_1`."""
    found: dict[str, Hook] = {}
    for hook in hooks:
        found[unique_name(type(hook).__name__, found)] = hook
    return found


def hook_states(hooks: Sequence[Hook]) -> dict[str, dict[str, Any]]:
    """Returns the states of hooks as JSON values, by the name of the hook.

    Raises:
      TypeError: A state holds something that a checkpoint can't. The message names the hook.
    """
    return {
        name: encode(hook.state, f"The state of the hook {name}, state")
        for name, hook in named(hooks).items()
    }


def hook_arguments(hooks: Sequence[Hook]) -> dict[str, dict[str, str]]:
    """Returns `{name of the hook: {argument: text}}`."""
    return {
        name: {**hook.arguments, "every": repr(hook.every)} for name, hook in named(hooks).items()
    }


def set_hook_states(
    hooks: Sequence[Hook], states: States, arguments: Arguments | None = None
) -> None:
    """Gives hooks the states from a checkpoint. A hook that the checkpoint lacks gets an empty one.

    Args:
      hooks: The hooks.
      states: What `hook_states` returned.
      arguments: What `hook_arguments` returned. None: the hooks stand in the order in which they
        stood when the states were saved.
    """
    here = named(hooks)
    found = {name: name for name in here if name in states}
    if arguments is not None:
        found = _matches(hook_arguments(hooks), {name: arguments.get(name, {}) for name in states})
    for name, hook in here.items():
        hook.state.clear()
        if name in found:
            hook.state.update(decode(states[found[name]]))


def _matches(now: Arguments, before: Arguments) -> dict[str, str]:
    """Returns `{name of a hook: name of the saved hook}`, the most similar pairs first."""

    def similarity(name: str, saved: str) -> tuple[bool, int, int]:
        a, b = now[name], before[saved]
        same = [text for key, text in a.items() if b.get(key) == text]
        # A string says what a hook is for; a number is more likely to be tuned.
        return a == b, sum(text[:1] in "'\"" for text in same), len(same)

    pairs = [
        (name, saved) for name in now for saved in before if _class_of(name) == _class_of(saved)
    ]
    pairs.sort(key=lambda pair: similarity(*pair), reverse=True)  # stable: then by order
    found: dict[str, str] = {}
    for name, saved in pairs:
        if name not in found and saved not in found.values():
            found[name] = saved
    return found


def _class_of(name: str) -> str:
    """The class name in the name of a hook."""
    base, _, number = name.rpartition("_")
    return base if number.isdigit() else name
