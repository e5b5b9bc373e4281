"""Configs are saved and compared."""

from pathlib import Path

from ml_collections import ConfigDict

from tfloss.app import config as saved


def test_differences_are_by_flat_key():
    old = {"a": 1, "b": {"c": [1, 2], "gone": None}, "same": 0.1, "d": {}, "e": 1}
    new = {"a": 1.0, "b": {"c": [1, 3], "come": "x"}, "same": 0.1, "d": {"k": 1}, "e": 1}

    assert saved.differences(old, new) == [
        "a: 1 -> 1.0",
        "b.c: [1, 2] -> [1, 3]",
        "b.gone: null -> absent",
        "d: {} -> absent",
        'b.come: absent -> "x"',
        "d.k: absent -> 1",
    ]


def test_a_config_of_any_values_can_be_saved(tmp_path):
    config = ConfigDict({"shape": (1, 2), "act": len, "path": Path("x")})

    saved.write_config(saved.to_json(config), tmp_path / "new" / "run")

    assert saved.read_config(tmp_path / "new" / "run")["shape"] == [1, 2]
    assert saved.read_config(tmp_path) is None
