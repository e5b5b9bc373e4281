"""A hook writes where the user says, else in the workdir; with neither it says what to do."""

from pathlib import Path

import pytest

from tfloss.hooks import Hook
from tfloss.hooks.output_path import output_path


class Writer(Hook):
    pass


def test_the_users_path_comes_before_the_workdir(make_trainer, tmp_path):
    hook = Writer()
    make_trainer([hook], workdir=tmp_path).begin(1)
    assert output_path(hook, None, "out", "Writer(path)") == tmp_path / "out"
    assert output_path(hook, "mine", "out", "Writer(path)") == Path("mine")


def test_without_a_path_the_remedy_is_named(make_trainer):
    hook = Writer()
    make_trainer([hook]).begin(1)
    message = r"Writer has no path to write to. Give the Trainer a workdir, or use Writer\(path\)"
    with pytest.raises(ValueError, match=message):
        output_path(hook, None, "out", "Writer(path)")
