"""`jit="auto"`: which of the engine's modes is the fastest, measured on the run's own first steps.

The steps that are measured train like any others. What is tried is bounded: nothing whose
compilation is expected to cost more than `BOUNDS` allow. Host code.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.common.files import replace_file
from tfloss.errors import NonFiniteLossError, TflossError

# Shares of the time that is left which compiling may cost, each up to so many seconds: 5 %; of
# shorter runs more, since a loop compiled whole is three times as fast, or thirty, where overhead
# rules. (15 s are 5 % of five minutes.)
BOUNDS = ((0.05, float("inf")), (0.1, 15.0), (0.25, 5.0))
MEASURED_SECONDS = 0.3  # of steps, in each mode
# Of a loop compiled whole that may win: what each call costs, a copy of the state above all, is
# to be shared by as many steps as in training, where calls take up to a second too.
LOOP_SECONDS = 1.0
NEAR = 0.75  # of the graph's rate, in short calls: so much may still win
MARGIN = 1.03  # how much faster another mode must be than the graph
# XLA takes about so many times as long as the first step, which traces, and so many seconds more:
# in all 7.1 to 7.8 s for 160 variables, 4.5 for 50 tasks, 4.4 for a transformer and 0.7 for an MLP,
# whose first steps took 3.2, 1.9, 2.2 and 0.2 s.
COMPILING, COMPILING_SECONDS = 2.3, 0.5
_TITLES = {
    "graph": "as a graph",
    "step": "with each step compiled by XLA",
    "loop": "with the whole loop compiled by XLA",
}

Request = tuple[str, int]  # a mode, and the most steps to run in it
Answer = tuple[int, float]  # steps run, seconds


class Tuner:
    """Asks for steps in one mode after the other, until it knows which to use.

        while tuner.request is not None:
            mode, most = tuner.request
            ...                                  # run up to so many steps
            tuner.answer(steps, seconds)         # or tuner.failed(error)
        tuner.mode

    Args:
      modes: to be tried after "graph", in order.
      steps_left: updates still to be made, at any time.
      clock: seconds.
      tracing: seconds that the first step took to trace, if that was before.

    Attributes:
      mode: the one to use, as far as is known.
      request: what to run next, or None when it is decided.
      rates: `{mode: steps/s}`.
      failure: why one doesn't work, or "".
      why: the decision in words.
      tracing: seconds that the first step took to trace.
    """

    def __init__(
        self,
        modes: list[str],
        steps_left: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        tracing: float = 0.0,
    ):
        self._modes, self._steps_left, self._clock = modes, steps_left, clock
        self.tracing = tracing
        self.mode = "graph"
        self.rates: dict[str, float] = {}
        self.failure = self.why = ""
        self._plan = self._decide()
        self.request: Request | None = next(self._plan)

    def answer(self, steps: int, seconds: float) -> None:
        """What came of the request."""
        try:
            self.request = self._plan.send((steps, max(seconds, 1e-9)))
        except StopIteration:
            self.request = None

    def failed(self, error: Exception) -> None:
        """The mode that was asked for doesn't work."""
        try:
            self.request = self._plan.throw(error)
        except StopIteration:
            self.request = None

    def _decide(self) -> Generator[Request, Answer, None]:
        began = self._clock()
        _, took = yield "graph", 1
        self.tracing = max(self.tracing, took)
        self.rates["graph"] = yield from self._rate("graph")
        notes = []
        tried = 0.0
        for mode in self._modes:
            left = self._steps_left() / self.rates["graph"]
            budget = max(min(share * left, most) for share, most in BOUNDS) - tried
            if COMPILING * self.tracing + COMPILING_SECONDS > budget:
                notes.append(f"XLA was not tried: too long to compile for the {left:.0f} s left")
                break
            since = self._clock()
            try:
                yield mode, 1  # compiles
                self.rates[mode] = yield from self._rate(mode)
            except (TflossError, tf.errors.OpError) as error:
                if isinstance(error, NonFiniteLossError):
                    raise
                self.failure = f"XLA can't compile it: {_first_line(error)}"
                notes.append(self.failure)
                break
            tried += self._clock() - since
            if self.rates[mode] > MARGIN * self.rates["graph"]:
                break
        best = max(self.rates, key=lambda mode: self.rates[mode])
        if self.rates[best] > MARGIN * self.rates["graph"]:
            self.mode = best
        others = [f"{_rate(v)} {_TITLES[k]}" for k, v in self.rates.items() if k != self.mode]
        self.why = f"{_TITLES[self.mode]}, {_rate(self.rates[self.mode])} steps/s"
        if others:
            took = self._clock() - began
            self.why += f" (against {', '.join(others)}; tried in the first {took:.0f} s)"
        if notes:
            self.why += "; " + "; ".join(notes)

    def _rate(self, mode: str) -> Generator[Request, Answer, float]:
        """Steps a second, in calls that get longer."""
        steps, spent, best = 1, 0.0, 0.0
        enough, longest = MEASURED_SECONDS, MEASURED_SECONDS / 2
        while spent < enough:
            done, took = yield mode, steps
            best = max(best, done / took)
            spent += took
            if mode == "loop" and best > NEAR * self.rates["graph"]:
                enough = longest = LOOP_SECONDS
            # A mode that is far slower than the graph is not to be measured for long.
            steps = min(2 * steps, max(1, int(best * longest)))
        return best


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _first_line(error: Exception) -> str:
    notes = getattr(error, "__notes__", [])
    text = notes[0] if notes else str(error)
    return text.strip().splitlines()[0][:300]


def load_choice(path: Path, circumstances: Mapping[str, Any]) -> str | None:
    """The mode that was chosen in these circumstances, if that was written down."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["mode"]) if found["circumstances"] == dict(circumstances) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_choice(path: Path, tuner: Tuner, circumstances: Mapping[str, Any]) -> None:
    """Writes a choice down, so that a resumed run need not measure again."""
    rates = {mode: round(rate, 2) for mode, rate in tuner.rates.items()}
    text = {"mode": tuner.mode, "steps_per_second": rates, "circumstances": dict(circumstances)}
    replace_file(path, json.dumps(text, indent=1) + "\n")
