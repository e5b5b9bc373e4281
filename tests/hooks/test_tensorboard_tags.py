import pytest

from tfloss.hooks.tensorboard_tags import TensorBoardRuns


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("losses/total", ("train", "losses/total")),
        ("val/losses/total", ("val", "losses/total")),
        ("val/accuracy", ("val", "metrics/accuracy")),
        ("val/ap/small", ("val", "ap/small")),
        ("accuracy", ("train", "metrics/accuracy")),
        ("rpn/recall", ("train", "rpn/recall")),
        ("learning_rate/generator", ("train", "training/learning_rate/generator")),
        ("input/wait_fraction", ("train", "training/input/wait_fraction")),
        ("val/time", ("val", "metrics/time")),  # a metric of the user
        ("test/losses/total", ("train", "test/losses/total")),  # no hook of this name
        ("val", ("train", "metrics/val")),
        ("val/", ("train", "val/")),
    ],
)
def test_places(name, place):
    assert TensorBoardRuns(["val"]).place(name) == place


def test_losses_are_the_first_group_of_what_a_trainer_logs():
    """TensorBoard sorts groups by name, and opens the first two."""
    names = ["losses/a", "accuracy", "weighted_losses/a", "steps_per_second", "learning_rate"]
    groups = {TensorBoardRuns().place(name)[1].partition("/")[0] for name in names}
    assert sorted(groups) == ["losses", "metrics", "training", "weighted_losses"]
