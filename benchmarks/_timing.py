"""Timing of variants that are run in turn, so that a noisy machine treats them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list]:
    """Seconds of each call, `{name: [one a round]}`; each variant is called once before."""
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
    """Median of the ratios of each round, and their quartiles."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
    quarter = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), quarter[0], quarter[2]
