"""Configs are saved and compared."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from tfloss.app import config as saved
from tfloss.trainer.workdir import read_config


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

    assert read_config(tmp_path / "new" / "run")["shape"] == [1, 2]
    assert read_config(tmp_path) is None


def test_a_config_that_changes_is_kept(tmp_path):
    """Other programs have files of this name, so nobody knows whose it was."""
    (tmp_path / "config.json").write_text('{"mine": 1}')
    for steps in (1, 1, 2):
        saved.write_config({"steps": steps}, tmp_path)
    kept = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert kept == {
        "config.json": {"steps": 2},
        "superseded.config.json": {"mine": 1},
        "superseded.1.config.json": {"steps": 1},
    }
