"""Checksums tell whether a file or directory is exactly as it was written."""

import hashlib

import pytest

from tfloss.common.checksums import file_checksum, first_change, tree_checksums


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree"
    (path / "b").mkdir(parents=True)
    (path / "a").write_bytes(b"1")
    (path / "b/c").write_bytes(b"2")
    (path / "link").symlink_to("/elsewhere")
    return path


def test_everything_in_a_tree_is_described(tree, tmp_path):
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    expected = {".": "directory", "b": "directory", "a": one, "b/c": two}
    assert tree_checksums(tree) == {**expected, "link": "link to /elsewhere"}
    assert tree_checksums(tree / "a") == {".": one} and file_checksum(tree / "a") == one
    assert tree_checksums(tmp_path / "missing") == {}
    (tmp_path / "to").symlink_to(tree)
    assert tree_checksums(tmp_path / "to") == {".": f"link to {tree}"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: (tree / "b/notes.txt").write_text(""), "'b/notes.txt' was added"),
        (lambda tree: (tree / "empty").mkdir(), "'empty' was added"),
        (lambda tree: (tree / "b/c").unlink(), "'b/c' was removed"),
        (lambda tree: (tree / "a").write_bytes(b"2"), "'a' was changed"),
    ],
)
def test_the_first_change_is_named(tree, change, said):
    before = tree_checksums(tree)
    change(tree)
    assert first_change(before, tree_checksums(tree)) == said
