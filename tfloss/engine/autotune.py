"""`jit="auto"`: measures which mode of the engine is the fastest, on the run's own first steps.

The steps that are measured train like any others. A mode is compiled if that is expected to save
time over the remaining steps (`time_saved`). Host code.
"""

import time
from collections.abc import Callable, Generator, Sequence

import tensorflow as tf

from tfloss.engine.mode_choice import TITLES, Choice, available_cores, rate_text
from tfloss.errors import NonFiniteLossError
from tfloss.step.trace_options import Mode

# The fraction of a graph's time that a mode is expected to save, before it is measured: the mean
# over the workloads of docs/performance.md (64, 77, 0, 18, 92 and 0 %) for the loop. The step is
# tried where a loop doesn't win or can't run, and saves less there.
EXPECTED_SAVING: dict[Mode, float] = {"loop": 0.4, "step": 0.1}
MEASURED_SECONDS = 0.3  # of steps, in each mode
# Of steps as a graph before a loop is compiled on another core, which should begin soon. The first
# calls are slow, so unless the loop is then CLEARLY faster, the graph is measured again.
FIRST_SECONDS = 0.1
CLEARLY = 1.25
MEASURED_CALLS = 3  # at least: Python's garbage collector may take as long as a whole measurement
# Of a compiled loop that may win: what each call costs, a copy of the state above all, has to be
# spread over as many steps as in training, where calls take up to a second too.
LOOP_SECONDS = 1.0
NEAR = 0.75  # a loop of this fraction of the graph's rate in short calls may win in long ones
MARGIN = 1.03  # how much faster than the graph another mode must be
# XLA takes about COMPILING times as long as the first step, which traces, and COMPILING_SECONDS
# more: in all 7.1 to 7.8 s for 160 variables, 4.5 for 50 tasks, 4.4 for a transformer and 0.7 for
# an MLP, whose first steps took 3.2, 1.9, 2.2 and 0.2 s.
COMPILING, COMPILING_SECONDS = 2.3, 0.5

Request = tuple[Mode, int]
"""A mode, and the most steps to run in it."""

Answer = tuple[int, float]
"""The number of steps that were run, and the seconds that they took."""


class Tuner:
    """Asks for steps in one mode after the other, until it knows which one to use.

        while tuner.request is not None:
            mode, most = tuner.request
            ...                                  # run up to `most` steps
            tuner.answer(steps, seconds)         # or tuner.failed(error)
        tuner.mode

    Args:
      modes: Modes to try after "graph", in this order. With `known`, that one.
      steps_left: Returns the number of updates that are still to be made.
      clock: Returns seconds.
      tracing: Seconds that the first step took to trace, if it was traced before.
      beside: Whether training continues while a loop is compiled.
      known: What an earlier run has chosen. Nothing is compared again: its mode is compiled if that
        saves time, and used.

    Attributes:
      mode: The mode to use, as far as is known.
      request: The steps to run next, or None when the mode is decided.
      rates: `{mode: steps per second}`.
      compiling: `{mode: seconds that compiling it took}`.
      known: Whether an earlier run has chosen.
      promising: Whether the requested steps are those of a loop that may win, so that its batches
        are to be read ahead, as in training.
      failure: Why a mode doesn't work, or "".
      why: What the decision is based on, in words.
      tracing: Seconds that the first step took to trace.
      cost: Expected seconds to compile the requested mode, if that isn't the graph.
    """

    def __init__(
        self,
        modes: Sequence[Mode],
        steps_left: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        tracing: float = 0.0,
        *,
        beside: bool = False,
        known: Choice | None = None,
    ):
        self._modes, self._steps_left, self._clock = modes, steps_left, clock
        self._beside, self.known = beside, known is not None
        self.tracing = tracing
        self.mode: Mode = "graph"
        self.rates: dict[Mode, float] = {}
        self.compiling: dict[Mode, float] = {}
        self.failure = self.why = ""
        self.cost, self.promising = 0.0, False
        self._plan = self._decide() if known is None else self._take(known)
        self.request: Request | None = next(self._plan)

    @property
    def choice(self) -> Choice:
        """What was decided, as far as is known."""
        return Choice(self.mode, dict(self.rates), dict(self.compiling))

    def answer(self, steps: int, seconds: float) -> None:
        """Reports the steps that were requested.

        Args:
          steps: Number of steps that were run.
          seconds: Seconds that they took.
        """
        try:
            self.request = self._plan.send((steps, max(seconds, 1e-9)))
        except StopIteration:
            self.request = None

    def failed(self, error: Exception) -> None:
        """Reports that the requested mode doesn't work.

        Args:
          error: The error that its first step raised.
        """
        try:
            self.request = self._plan.throw(error)
        except StopIteration:
            self.request = None

    @property
    def title(self) -> str:
        """The mode to use, in words."""
        return TITLES[self.mode]

    def _decide(self) -> Generator[Request, Answer, None]:
        began = self._clock()
        _, took = yield "graph", 1
        self.tracing = max(self.tracing, took)
        soon = self._beside and self._modes[0] == "loop" and available_cores() > 1
        seconds = FIRST_SECONDS if soon else MEASURED_SECONDS
        self.rates["graph"] = yield from self._rate("graph", seconds)
        notes = []
        for mode in self._modes:
            left = self._steps_left() / self.rates["graph"]
            cost = COMPILING * self.tracing + COMPILING_SECONDS
            if note := self._refused(mode, left, EXPECTED_SAVING[mode], cost):
                notes.append(note)
                break
            try:
                yield from self._compile(mode)
                self.rates[mode] = yield from self._rate(mode, MEASURED_SECONDS)
            except Exception as error:  # noqa: BLE001 - of a trace too
                notes.append(self._failed(error))
                break
            if soon and self.rates[mode] < CLEARLY * self.rates["graph"]:
                again = yield from self._rate("graph", MEASURED_SECONDS)
                self.rates["graph"], soon = max(again, self.rates["graph"]), False
            if self.rates[mode] > MARGIN * self.rates["graph"]:
                break
        best = max(self.rates, key=lambda mode: self.rates[mode])
        if self.rates[best] > MARGIN * self.rates["graph"]:
            self.mode = best
        others = [f"{rate_text(v)} {TITLES[k]}" for k, v in self.rates.items() if k != self.mode]
        if others:
            took = self._clock() - began
            self.why = (
                f" (without data and logs {rate_text(self.rates[self.mode])}, against "
                f"{', '.join(others)}; tried in the first {took:.0f} s)"
            )
        if notes:
            self.why += "; " + "; ".join(notes)

    def _take(self, known: Choice) -> Generator[Request, Answer, None]:
        """Compiles the mode that an earlier run has chosen."""
        _, took = yield "graph", 1
        self.tracing = max(self.tracing, took)
        left = self._steps_left() / known.rates["graph"]
        note = self._refused(known.mode, left, known.saving, known.seconds_to_compile)
        if not note:
            try:
                yield from self._compile(known.mode)
                self.mode, self.rates, self.why = known.mode, dict(known.rates), known.why
                return
            except Exception as error:  # noqa: BLE001 - of a trace too
                note = self._failed(error)
        self.why = f"; {note}"

    def _refused(self, mode: Mode, left: float, saving: float, cost: float) -> str:
        """Why a mode is not compiled, or ""."""
        beside = mode == "loop" and self._beside
        if time_saved(left, saving, cost, beside=beside) > 0:
            self.cost = cost
            return ""
        return (
            f"not tried {TITLES[mode]}: compiling takes about {cost:.0f} s, too long for the "
            f"{left:.0f} s left"
        )

    def _compile(self, mode: Mode) -> Generator[Request, Answer, None]:
        _, took = yield mode, 1
        self.compiling.setdefault(mode, took)

    def _failed(self, error: Exception) -> str:
        self.promising = False
        if isinstance(error, NonFiniteLossError):
            raise error
        self.failure = f"XLA can't compile it: {_first_line(error)}"
        return self.failure

    def _rate(self, mode: Mode, enough: float) -> Generator[Request, Answer, float]:
        """Measures the steps per second of a mode, in calls that get longer."""
        steps, spent, best, calls = 1, 0.0, 0.0, 0
        longest = MEASURED_SECONDS / 2
        while spent < enough or calls < MEASURED_CALLS:
            done, took = yield mode, steps
            best = max(best, done / took)
            spent += took
            calls += 1
            if mode == "loop" and best > NEAR * self.rates["graph"]:
                enough, longest, self.promising = LOOP_SECONDS, LOOP_SECONDS, True
            # A mode that is far slower than the graph is not measured for long.
            steps = min(2 * steps, max(1, int(best * longest)))
        self.promising = False
        return best


def time_saved(
    left: float, saving: float, compiling: float, *, beside: bool, cores: int | None = None
) -> float:
    """Returns the seconds that a run is expected to save if it compiles a mode.

    While a mode is compiled beside the training, the compiler takes one core of it. Otherwise
    training stops. What is left then takes less time by the saving.

    Args:
      left: Seconds that the remaining steps take as a graph.
      saving: The fraction of a graph's time that the mode saves.
      compiling: Seconds that compiling takes.
      beside: Whether training continues meanwhile.
      cores: Number of cores. None: those of this process.
    """
    speed = 1.0 - 1.0 / (cores or available_cores()) if beside else 0.0
    meanwhile = min(left, speed * compiling)  # seconds of a graph's work that are done
    return saving * (left - meanwhile) - (compiling - meanwhile)


def _first_line(error: Exception) -> str:
    # The advice on an error of the compiler says more than its own text.
    notes = getattr(error, "__notes__", []) if isinstance(error, tf.errors.OpError) else []
    text = notes[0] if notes else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0][:300]
