"""Curves keep what was logged of losses and results, in bounded memory."""

from tfloss.trainer.curves import Curves


def test_losses_and_results_are_kept():
    curves = Curves(("losses/", "val/"))
    curves.add(1, {"losses/a": 2.0, "speed/steps": 9.0})
    curves.add(2, {"losses/a": 1.0, "val/accuracy": 0.5})
    assert curves.points == {"losses/a": {1: 2.0, 2: 1.0}, "val/accuracy": {2: 0.5}}


def test_a_long_run_keeps_fewer_points():
    curves = Curves(("losses/",))
    for step in range(1, 100_001):
        curves.add(step, {"losses/a": step / 2})
    kept = curves.points["losses/a"]
    assert 400 < len(kept) <= 1000 and all(value == step / 2 for step, value in kept.items())
    assert list(kept) == sorted(kept) and list(kept)[0] == 1 and list(kept)[-1] > 99_000
