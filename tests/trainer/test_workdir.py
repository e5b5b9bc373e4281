"""The directory of a run: what is written once it trains."""

from tfloss.trainer import workdir


def test_what_describes_a_run_is_written_at_its_first_step(tmp_path):
    written = []
    workdir.write_when_trained(tmp_path, lambda: written.append("first"))
    workdir.write_when_trained(tmp_path, lambda: written.append("second"))
    workdir.write_deferred(None)
    workdir.write_deferred(tmp_path.parent)
    assert written == []
    workdir.write_deferred(tmp_path / "fold_1")  # a trainer in a directory below
    workdir.write_deferred(tmp_path)
    assert written == ["second"]
