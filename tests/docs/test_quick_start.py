"""The project of docs/quick_start.md works, from an empty folder."""

import json
from pathlib import Path

import pytest
import tensorflow as tf

from tests.docs import run_page
from tests.fork import run_script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for _, title, code in run_page.blocks((ROOT / "docs" / "quick_start.md").read_text()):
        if title:
            (tmp_path / title).write_text(code)
    return tmp_path


def run(project: Path, *flags: str) -> str:
    config = [f"--config={project / 'config.py'}", f"--workdir={project / 'runs'}"]
    path = {"PYTHONPATH": str(ROOT)}
    done = run_script(project / "train.py", *config, *flags, environment=path)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]
    return done.stdout


def test_the_project_starts(project: Path):
    assert "test/accuracy" in run(project, "--max_steps=2", "--nojit")


@pytest.mark.slow
def test_the_project_trains_resumes_evaluates_and_exports(project: Path):
    run(project, "--max_steps=250")
    printed = run(project)
    rows = [
        json.loads(row) for row in (project / "runs" / "metrics.jsonl").read_text().splitlines()
    ]
    evaluated = [row["step"] for row in rows if "val/accuracy" in row]
    assert evaluated == [250, 500, 750, 1_000]  # the second command continued at step 250
    assert float(printed.split("test/accuracy")[1].split()[0]) > 0.9
    assert "test/accuracy" in run(project, "--mode=eval", "--restore=best")
    served = tf.saved_model.load(project / "runs" / "export").signatures["serving_default"]
    probabilities = served(x=tf.constant([[1.0, 1.0], [1.0, -1.0]]))["probabilities"]
    assert tf.argmax(probabilities, -1).numpy().tolist() == [1, 0]
    run(project, "--mode=export", "--restore=best")
    assert list((project / "runs").glob("export_step_*"))
