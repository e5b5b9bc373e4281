"""The record of an export proves that nobody has changed it."""

import json

import pytest

from tfloss.saved_model.export_record import FILE, foreign_part, write_record


@pytest.fixture
def exported(tmp_path):
    path = tmp_path / "export"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"1")
    (path / "variables/variables.index").write_bytes(b"2")
    write_record(path)
    return path


def test_a_new_export_is_as_it_was_written(exported):
    assert foreign_part(exported) is None
    assert set(json.loads((exported / FILE).read_text())) == {"tfloss", "files"}
    exported.rename(exported.with_name("moved"))
    assert foreign_part(exported.with_name("moved")) is None


def test_changes_are_named(exported):
    (exported / "variables/variables.index").write_bytes(b"3")
    assert foreign_part(exported) == "'variables/variables.index' was changed"
    (exported / "assets.extra/mine").write_bytes(b"")
    assert foreign_part(exported) == "'assets.extra/mine' was added"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_without_a_record_it_is_not_known_who_wrote_it(exported, content):
    (exported / FILE).unlink()
    if content is not None:
        (exported / FILE).write_bytes(content)
    assert "it has no assets.extra/tfloss.json" in foreign_part(exported)


def test_a_link_is_no_record(exported):
    record = exported / FILE
    record.rename(exported.parent / "elsewhere")
    record.symlink_to(exported.parent / "elsewhere")
    assert "it has no assets.extra/tfloss.json" in foreign_part(exported)
