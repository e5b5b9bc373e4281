import pytest

from tfloss.hooks.tensorboard_tags import TensorBoardRuns


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("losses/total", ("train", "Losses/total")),
        ("val/losses/total", ("val", "Losses/total")),
        ("val/accuracy", ("val", "Metrics/accuracy")),
        ("val/ap/small", ("val", "ap/small")),
        ("accuracy", ("train", "Metrics/accuracy")),
        ("rpn/recall", ("train", "rpn/recall")),
        ("learning_rate/generator", ("train", "Training/learning_rate/generator")),
        ("input/wait_fraction", ("train", "Training/input/wait_fraction")),
        ("val/time", ("val", "Metrics/time")),  # a metric of the user
        ("test/losses/total", ("train", "test/losses/total")),  # no hook of this name
        ("val", ("train", "Metrics/val")),
        ("val/", ("train", "val/")),
        ("losses", ("train", "Metrics/losses")),
    ],
)
def test_places(name, place):
    assert TensorBoardRuns(["val"]).place(name) == place


def test_losses_and_metrics_stand_above_the_groups_of_the_user():
    """TensorBoard sorts groups by name, and opens the first two."""
    runs = TensorBoardRuns()
    names = ["attention/a", "losses/a", "accuracy", "weighted_losses/a", "learning_rate"]
    groups = {runs.place(name)[1].partition("/")[0] for name in names}
    groups.add(runs.split("inputs")[1])  # images
    ordered = ["Losses", "Metrics", "Training", "attention", "inputs", "weighted_losses"]
    assert sorted(groups) == ordered
