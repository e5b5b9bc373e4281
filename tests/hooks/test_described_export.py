"""An export and its description belong together, whenever the process dies."""

import json

import pytest

from tfloss.common import replacement
from tfloss.errors import ExportError
from tfloss.hooks.described_export import DescribedExport, description_file
from tfloss.saved_model.export_record import write_record


def write(step):
    """Writes a file or a directory, by turns."""

    def function(path):
        if step % 2:
            path.mkdir()
            (path / "step").write_text(str(step))
        else:
            path.write_text(str(step))

    return function


def exported(path):
    return int((path / "step" if path.is_dir() else path).read_text())


def described(path):
    return json.loads(description_file(path).read_text())


def test_files_and_directories_take_turns(tmp_path):
    path = tmp_path / "some/export"
    for step in (1, 2, 4, 3, 5):
        DescribedExport(path).replace(write(step), {"step": step})
        (description,) = DescribedExport(path).check()
        assert exported(path) == described(path)["step"] == description["step"] == step
        assert len(list(path.parent.iterdir())) == 2


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """`kill(n)`: the process dies before its n-th replacement of a path is put there."""

    def set_up(number):
        commit, calls = replacement.Replacement.commit, []

        def counted(self):
            calls.append(self)
            if len(calls) >= number:  # a dead process does nothing more
                raise Killed
            commit(self)

        monkeypatch.setattr(replacement.Replacement, "commit", counted)

    return set_up


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("number", "expected"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_description_never_belongs_to_another_export(
    tmp_path, kill, monkeypatch, first, number, expected
):
    path = tmp_path / "export"
    if not first:
        DescribedExport(path).replace(write(1), {"step": 1})
    kill(number)
    with pytest.raises(Killed):
        DescribedExport(path).replace(write(2), {"step": 2})
    there = {"old": None if first else 1, "new": 2}[expected]
    if description_file(path).exists():
        assert described(path).get("step") in (None, there)  # it never names another export
    monkeypatch.undo()
    DescribedExport(path).check()
    if there is None:
        assert not path.exists()
    else:
        assert exported(path) == described(path)["step"] == there
    DescribedExport(path).replace(write(3), {"step": 3})
    assert exported(path) == described(path)["step"] == 3
    assert sorted(one.name for one in tmp_path.iterdir()) == ["export", "export.best.json"]


def test_an_export_of_tfloss_may_be_replaced_and_one_of_somebody_else_not(tmp_path):
    path = tmp_path / "export"
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ExportError, match="there is no export.best.json beside it"):
        DescribedExport(path).check()
    write_record(path)
    assert DescribedExport(path).check() == []
    DescribedExport(path).replace(write(1), {"step": 1})
    assert exported(path) == 1


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"step": 1}', '{"either": 1}'])
def test_a_file_that_is_no_description_is_refused(tmp_path, content):
    path = tmp_path / "export"
    description_file(path).write_text(content)
    with pytest.raises(ExportError, match="export.best.json is not a description that tfloss wr"):
        DescribedExport(path).replace(write(1), {})
    assert description_file(path).read_text() == content and not path.exists()
