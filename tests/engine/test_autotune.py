"""What is tried, for how long, and what is chosen, with clocks and errors that are made up."""

import pytest
import tensorflow as tf

from tfloss.engine.autotune import Tuner, load_choice, save_choice
from tfloss.errors import ModelError, NonFiniteLossError


def _tuned(rates, compiling, steps, modes=("loop", "step"), tracing=0.5, errors=None, per_call=0.0):
    """Plays a run: rates in steps/s and seconds to compile, by mode; seconds for each call of a
    loop besides. Returns tuner, seconds, what was asked for."""
    now, left, seen = [0.0], [steps], set()
    tuner = Tuner(list(modes), lambda: left[0], lambda: now[0])
    asked = []
    while tuner.request is not None:
        mode, most = tuner.request
        asked.append(tuner.request)
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
        # Compiling takes 2.3 times the tracing and 0.5 s. The loop saves 40 % of what is left then.
        (["loop", "step"], 95.0, 11.0, True),  # 0.4 * (95 - 25.8) = 27.7 > 25.8
        (["loop", "step"], 85.0, 11.0, False),  # 0.4 * (85 - 25.8) = 23.7
        (["loop", "step"], 20.0, 1.85, True),  # 0.4 * (20 - 4.8) = 6.1 > 4.8
        (["loop", "step"], 15.0, 1.85, False),  # 0.4 * (15 - 4.8) = 4.1
        (["step"], 300.0, 11.0, True),  # 0.1 * (300 - 25.8) = 27.4 > 25.8
        (["step"], 260.0, 11.0, False),  # 0.1 * (260 - 25.8) = 23.4
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


def test_a_choice_is_kept_for_the_same_circumstances(tmp_path):
    tuner, _, _ = _tuned({"graph": 1_000.0, "loop": 5_000.0}, {"loop": 1.0}, 10**6, modes=["loop"])
    path, here = tmp_path / "engine.json", {"replicas": 1, "devices": ["CPU"]}
    assert load_choice(path, here) is None
    save_choice(path, tuner, here)
    assert load_choice(path, here) == "loop"
    assert load_choice(path, {**here, "replicas": 2}) is None
    path.write_text("{")
    assert load_choice(path, here) is None
    assert list(tmp_path.iterdir()) == [path]
    for replicas in (1, 2):  # the second one replaces the first
        save_choice(path, tuner, {"replicas": replicas})
    assert load_choice(path, {"replicas": 2}) == "loop"
    aside = tmp_path / "superseded.engine.json"  # not written by tfloss
    assert sorted(tmp_path.iterdir()) == [path, aside] and aside.read_text() == "{"
