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
    assert "5,000 steps/s" in tuner.why and "1,000 as a graph" in tuner.why
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
    assert "too long to compile" in tuner.why


@pytest.mark.parametrize(
    ("seconds", "tracing", "tried"),
    [
        (1_000, 21.0, True),  # 49 s to compile: 5 %
        (1_000, 22.0, False),
        (160, 6.2, True),  # 14.8 s: at most 15 s and a tenth
        (140, 6.2, False),
        (20, 1.85, True),  # 4.8 s: at most 5 s and a quarter
        (15, 1.85, False),
    ],
)
def test_how_long_a_run_must_be_for_compiling(seconds, tracing, tried):
    tuner, _, asked = _tuned(
        {"graph": 100.0, "loop": 500.0}, {"loop": 1.0}, int(100 * seconds), tracing=tracing
    )
    assert ("loop" in {mode for mode, _ in asked}) == tried


def test_what_is_tried_costs_less_than_five_per_cent_of_five_minutes():
    # Tracing takes 6.1 s, so compiling is expected to take 14.5 s, and does.
    tuner, seconds, _ = _tuned(
        {"graph": 100.0, "loop": 50.0, "step": 50.0},
        {"loop": 14.5, "step": 14.5}, 30_000, tracing=6.1,
    )  # fmt: skip
    assert tuner.mode == "graph"
    assert "step" not in tuner.rates  # the budget is used up
    slower = seconds - 6.1 - 14.5
    assert 14.5 <= 0.05 * 300 and slower < 1.5


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
