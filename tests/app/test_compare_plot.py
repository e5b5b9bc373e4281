from tests.app.logs import write
from tfloss.app import compare_plot
from tfloss.app.compare_plot import draw
from tfloss.app.run_curves import read_runs


def test_training_and_validation_share_a_panel(tmp_path, monkeypatch):
    rows = [
        {"step": step, "losses/total": 100.0**-step, "val/losses/total": 2.0, "val/recall": 0.5,
         "accuracy": 0.1 * step, "val/accuracy": 0.1, "test/accuracy": 0.2}
        for step in (1, 2, 3)
    ]  # fmt: skip
    runs = read_runs([write(tmp_path / name, rows) for name in ("a", "b")])
    panels = {}
    inner = compare_plot._draw_panel

    def spy(axes, name, parts, runs):
        inner(axes, name, parts, runs)
        panels[name] = axes

    monkeypatch.setattr(compare_plot, "_draw_panel", spy)
    assert draw(runs, [tag for tag in rows[0] if tag != "step"], tmp_path / "new" / "c.png") == []
    assert list(panels) == ["losses/total", "val/recall", "accuracy"]
    loss, _, accuracy = panels.values()
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert len(loss.lines) == 4 and len(accuracy.lines) == 6
    assert loss.get_xlabel() == "step" and loss.get_ylabel() == "total"
    assert loss.get_title() == "losses/total"
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert sorted(labels) == ["test", "train", "val"]
    a, b = (loss.lines[index] for index in (0, 1))
    assert a.get_color() != b.get_color() and a.get_linestyle() == b.get_linestyle()
    (legend,) = loss.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert (tmp_path / "new" / "c.png").stat().st_size > 10_000


def test_panels_that_do_not_fit_are_named(tmp_path):
    tags = [f"m{number:02d}" for number in range(14)]
    runs = read_runs([write(tmp_path / "a", [{"step": 1, **dict.fromkeys(tags, 1.0)}])])
    assert draw(runs, tags, tmp_path / "c.png") == ["m12", "m13"]


def test_many_runs_have_different_colours():
    assert len({compare_plot._color(index, 12) for index in range(12)}) == 12
