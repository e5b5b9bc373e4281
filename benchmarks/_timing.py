"""Interleaved timing of variants, so that noise of the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list]:
    """Times each variant once per round, after one call to warm up.

    Args:
      variants: Functions by name.
      rounds: The number of rounds.

    Returns:
      The seconds of each call, `{name: [one per round]}`.
    """
    seconds: dict[str, list] = {name: [] for name in variants}
    for call in variants.values():
        call()
    for _ in range(rounds):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list], name: str, base: str) -> tuple[float, float, float]:
    """Compares two variants round by round.

    Args:
      seconds: The result of `interleaved`.
      name: The name of a variant.
      base: The name of the variant to compare it with.

    Returns:
      The median of the ratios of each round, and their quartiles.
    """
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
    quarter = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), quarter[0], quarter[2]
