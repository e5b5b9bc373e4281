"""What is tried, for how long, and what is chosen, with clocks and errors that are made up."""

import pytest
import tensorflow as tf

from tfloss.engine import autotune
from tfloss.engine.autotune import Tuner, time_saved
from tfloss.engine.mode_choice import Choice
from tfloss.errors import ModelError, NonFiniteLossError


def _tuned(
    rates,
    compiling,
    steps,
    modes=("loop", "step"),
    tracing=0.5,
    errors=None,
    per_call=0.0,
    known=None,
    beside=False,
    promising=None,
):
    """Plays a run: rates in steps/s and seconds to compile, by mode; seconds for each call of a
    loop besides. Returns tuner, seconds, what was asked for."""
    now, left, seen = [0.0], [steps], set()
    tuner = Tuner(list(modes), lambda: left[0], lambda: now[0], known=known, beside=beside)
    asked = []
    while tuner.request is not None:
        mode, most = tuner.request
        asked.append(tuner.request)
        if tuner.promising and promising is not None:
            promising.append(most)
        if errors and mode in errors:
            now[0] += compiling.get(mode, 0.0)
            tuner.failed(errors[mode])
            continue
        took = most / rates[mode] + per_call * (mode == "loop")
        if mode not in seen:
            took += tracing if mode == "graph" else compiling[mode]
            seen.add(mode)
        now[0] += took
        left[0] -= most
        tuner.answer(most, took)
    return tuner, now[0], asked


def test_the_fastest_is_chosen_and_the_steps_count():
    tuner, seconds, asked = _tuned(
        {"graph": 1_000.0, "loop": 5_000.0, "step": 2_000.0}, {"loop": 2.0, "step": 2.0}, 10**6
    )
    assert tuner.mode == "loop"
    assert tuner.rates["loop"] == pytest.approx(5_000, rel=0.01)
    assert "step" not in tuner.rates  # the same kernels with more in between
    assert "without data and logs 5,000, against" in tuner.why and "1,000 as a graph" in tuner.why
    assert seconds < 5.0


@pytest.mark.parametrize(("cores", "least", "most"), [(1, 300, 500), (2, 100, 250)])
def test_a_loop_that_is_compiled_beside_begins_soon_and_reads_ahead_when_it_may_win(
    cores, least, most, monkeypatch
):
    """On a single core, training would wait for the compiler."""
    monkeypatch.setattr(autotune, "available_cores", lambda: cores)
    rates = {"graph": 1_000.0, "loop": 5_000.0}
    ahead = []
    tuner, _, asked = _tuned(
        rates, {"loop": 2.0}, 10**6, per_call=0.002, beside=True, promising=ahead
    )
    assert tuner.mode == "loop"
    graph = [most for mode, most in asked if mode == "graph"]
    assert least <= sum(graph) < most  # in calls that get twice as long
    tried = [most for mode, most in asked if mode == "loop"]
    assert tried[:3] == [1, 1, 2] and ahead == tried[3:]  # 2 steps take 2.4 ms
    assert not tuner.promising


@pytest.mark.parametrize(("loop", "mode"), [(1_100.0, "loop"), (1_020.0, "graph"), (9.0, "graph")])
def test_unless_the_loop_is_clearly_faster_the_graph_is_measured_again(loop, mode, monkeypatch):
    monkeypatch.setattr(autotune, "available_cores", lambda: 2)
    rates = {"graph": 1_000.0, "loop": loop}
    ahead = []
    tuner, _, asked = _tuned(
        rates, {"loop": 2.0}, 10**6, modes=["loop"], beside=True, promising=ahead
    )
    assert tuner.mode == mode
    assert asked[-1][0] == "graph"
    assert sum(most for mode, most in asked if mode == "graph") >= 100 + 300
    assert bool(ahead) == (loop > 750)


def test_a_loop_that_is_slow_is_left_soon_and_the_step_is_tried():
    tuner, seconds, asked = _tuned(
        {"graph": 600.0, "loop": 6.0, "step": 700.0}, {"loop": 2.0, "step": 2.0}, 10**6
    )
    assert tuner.mode == "step"
    assert sum(most for mode, most in asked if mode == "loop") < 6
    assert seconds < 0.5 + 4.0 + 1.0 + 3 * 0.7


def test_a_loop_of_slow_steps_is_measured_in_calls_of_many():
    # A transformer: each call copies the state, which takes half as long as a step.
    tuner, seconds, asked = _tuned(
        {"graph": 6.6, "loop": 8.2, "step": 8.0}, {"loop": 4.0, "step": 4.0}, 10**4, per_call=0.06
    )
    assert tuner.mode == "loop"
    assert max(most for mode, most in asked if mode == "loop") >= 4
    assert seconds < 0.5 + 4.0 + 3.0


def test_one_call_that_something_else_delays_is_not_the_rate():
    tuner = Tuner(["loop"], lambda: 10**5, lambda: 0.0)
    tuner.answer(1, 3.0)  # traces
    tuner.answer(1, 0.31)  # a garbage collection
    while tuner.request is not None and tuner.request[0] == "graph":
        tuner.answer(tuner.request[1], tuner.request[1] / 100)
    assert tuner.rates["graph"] == pytest.approx(100)


def test_a_small_gain_is_not_worth_the_change():
    tuner, _, _ = _tuned(
        {"graph": 600.0, "loop": 610.0, "step": 605.0}, {"loop": 1.0, "step": 1.0}, 10**6
    )
    assert tuner.mode == "graph"


@pytest.mark.parametrize("steps", [100, 1_000])
def test_a_short_run_tries_nothing(steps):
    tuner, _, asked = _tuned({"graph": 1_000.0}, {}, steps)
    assert tuner.mode == "graph" and {mode for mode, _ in asked} == {"graph"}
    assert "compiling takes about 2 s, too long for the" in tuner.why


@pytest.mark.parametrize(
    ("modes", "seconds", "tracing", "tried"),
    [
        # Compiling takes 2.3 times the tracing and 0.5 s. The loop saves 40 % of what is left.
        (["loop", "step"], 70.0, 11.0, True),  # 0.4 * 69.7 = 27.9 > 25.8
        (["loop", "step"], 60.0, 11.0, False),  # 0.4 * 59.7 = 23.9
        (["loop", "step"], 14.0, 1.85, True),  # 0.4 * 13.7 = 5.5 > 4.8
        (["loop", "step"], 11.0, 1.85, False),  # 0.4 * 10.7 = 4.3
        (["step"], 280.0, 11.0, True),  # 0.1 * 279.7 = 28.0 > 25.8
        (["step"], 240.0, 11.0, False),  # 0.1 * 239.7 = 24.0
    ],
)
def test_a_mode_is_compiled_if_that_is_expected_to_save_time(modes, seconds, tracing, tried):
    rates = {"graph": 100.0, "loop": 500.0, "step": 500.0}
    tuner, _, asked = _tuned(
        rates, {"loop": 1.0, "step": 1.0}, int(100 * seconds), modes=modes, tracing=tracing
    )
    assert (modes[0] in {mode for mode, _ in asked}) == tried
    assert ("too long for" in tuner.why) == (not tried)


def test_a_slow_machine_trains_160_variables_in_the_fastest_mode():
    """The best of a graph alone is 126 s, that of a loop alone 26 + 19 s."""
    rates, compiling = {"graph": 104.0, "loop": 631.0, "step": 97.0}, {"loop": 28.0, "step": 28.0}
    tuner, seconds, asked = _tuned(rates, compiling, 12_000, tracing=11.0)
    assert tuner.mode == "loop"
    seconds += (12_000 - sum(most for _, most in asked)) / rates["loop"]
    assert seconds < 11.0 + 28.0 + 12_000 / 631 + 2.0  # the graph: 126 s


def test_what_a_loop_that_loses_has_cost_does_not_pay_for_the_step():
    tuner, seconds, _ = _tuned(
        {"graph": 100.0, "loop": 50.0, "step": 50.0},
        {"loop": 14.5, "step": 14.5}, 10_000, tracing=6.1,
    )  # fmt: skip
    assert tuner.mode == "graph" and "step" not in tuner.rates
    assert "not tried with each step compiled by XLA" in tuner.why
    assert seconds < 6.1 + 14.5 + 1.5


@pytest.mark.parametrize(
    "error", [tf.errors.UnimplementedError(None, None, "no kernel"), ModelError("no")]
)
def test_what_does_not_compile_is_said(error):
    tuner, _, asked = _tuned(
        {"graph": 100.0, "step": 500.0}, {"loop": 1.0, "step": 1.0}, 10**6, errors={"loop": error}
    )
    assert tuner.mode == "graph"
    assert "XLA can't compile it: no" in tuner.why
    assert "step" not in {mode for mode, _ in asked}  # it would fail for the same reason


def test_a_nan_is_not_taken_for_a_failure_of_the_compiler():
    error = NonFiniteLossError(3, {"a": float("nan")})
    with pytest.raises(NonFiniteLossError):
        _tuned({"graph": 100.0}, {}, 10**6, errors={"loop": error})


@pytest.mark.parametrize(
    ("left", "saving", "beside", "cores", "saved"),
    [
        (100.0, 0.4, False, 2, 10.0),  # 0.4 * 100 - 30
        (70.0, 0.4, False, 2, -2.0),
        (100.0, 0.4, True, 2, 19.0),  # half of the 30 s is training: 0.4 * 85 - 15
        (100.0, 0.4, True, 4, 23.5),  # three quarters of it are: 0.4 * 77.5 - 7.5
        (100.0, 0.4, True, 1, 10.0),  # the compiler has the only core
        (10.0, 0.9, True, 2, -20.0),  # all is done before
        (300.0, 1 - 104 / 631, True, 2, 223.0),
    ],
)
def test_the_time_that_compiling_for_30_s_saves(left, saving, beside, cores, saved):
    found = time_saved(left, saving, 30.0, beside=beside, cores=cores)
    assert found == pytest.approx(saved, abs=0.1)


KNOWN = Choice("loop", {"graph": 100.0, "loop": 500.0}, {"loop": 5.0})


def test_a_known_winner_is_compiled_at_once_and_not_compared():
    tuner, _, asked = _tuned({"graph": 90.0, "loop": 450.0}, {"loop": 5.0}, 10**4, known=KNOWN)
    assert asked == [("graph", 1), ("loop", 1)]
    assert tuner.mode == "loop" and tuner.known
    assert tuner.why == (" (chosen by an earlier run, for 500 against 100 as a graph)")


@pytest.mark.parametrize(("seconds", "compiled"), [(7.0, True), (5.5, False)])
def test_a_known_winner_is_not_compiled_for_a_few_steps(seconds, compiled):
    """It saves 80 % of what is left, and 5 s are spent."""
    tuner, _, asked = _tuned(
        {"graph": 100.0, "loop": 500.0}, {"loop": 5.0}, int(100 * seconds), known=KNOWN
    )
    assert (tuner.mode == "loop") == compiled == (len(asked) == 2)
    assert ("compiling takes about 5 s, too long for the 5 s left" in tuner.why) != compiled


def test_a_known_winner_that_fails_leaves_the_graph():
    error = tf.errors.InternalError(None, None, "no memory")
    tuner, _, _ = _tuned({"graph": 100.0}, {}, 10**6, errors={"loop": error}, known=KNOWN)
    assert tuner.mode == "graph" and "XLA can't compile it: no memory" in tuner.why
