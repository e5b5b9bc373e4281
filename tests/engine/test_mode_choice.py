"""The file that keeps a choice, and when it counts no longer."""

import json

import pytest

from tfloss.engine.mode_choice import Choice, load_choice, processor, save_choice

CHOICE = Choice("loop", {"graph": 1_000.0, "loop": 5_000.0}, {"loop": 7.25})
HERE = {"replicas": 1, "devices": ["CPU"], "cores": 2, "processor": "made up"}


def test_a_choice_is_kept_for_the_same_circumstances(tmp_path):
    path = tmp_path / "engine.json"
    assert load_choice(path, HERE) is None
    save_choice(path, CHOICE, HERE)
    found = load_choice(path, HERE)
    assert found == CHOICE and found.saving == 0.8 and found.seconds_to_compile == 7.25
    for other in ({"replicas": 2}, {"cores": 4}, {"processor": "another"}):
        assert load_choice(path, HERE | other) is None
    path.write_text("{")
    assert load_choice(path, HERE) is None
    assert list(tmp_path.iterdir()) == [path]
    for replicas in (1, 2):  # the second one replaces the first
        save_choice(path, CHOICE, {"replicas": replicas})
    assert load_choice(path, {"replicas": 2}) == CHOICE
    aside = tmp_path / "superseded.engine.json"  # not written by tfloss
    assert sorted(tmp_path.iterdir()) == [path, aside] and aside.read_text() == "{"


@pytest.mark.parametrize(
    "damage",
    [
        {"mode": "fast"},
        {"mode": "step"},  # without a rate
        {"steps_per_second": {"loop": 5.0}},
        {"steps_per_second": {"graph": 0.0, "loop": 5.0}},
        {"steps_per_second": {"graph": "many", "loop": 5.0}},
        {"steps_per_second": [1.0]},
        {"seconds_to_compile": {"loop": float("nan")}},
        {"seconds_to_compile": None},
    ],
    ids=str,
)
def test_a_file_with_other_values_is_none(tmp_path, damage):
    path = tmp_path / "engine.json"
    save_choice(path, CHOICE, HERE)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert load_choice(path, HERE) is None


def test_a_file_of_an_earlier_version_is_measured_again_and_replaced(tmp_path):
    path = tmp_path / "engine.json"
    old = {"mode": "loop", "steps_per_second": {"graph": 1.0, "loop": 2.0}, "circumstances": HERE}
    path.write_text(json.dumps(old))
    assert load_choice(path, HERE) is None  # without the seconds
    save_choice(path, CHOICE, HERE)
    assert list(tmp_path.iterdir()) == [path]


def test_the_processor(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 2 GHz\n\nprocessor\t: 1\n")
    assert processor(file) == "Fast CPU @ 2 GHz"
    assert processor(tmp_path / "none") != ""
