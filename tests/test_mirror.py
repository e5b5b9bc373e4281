"""The tests mirror the package: `tests/hooks/test_every.py` tests `tfloss/hooks/every.py`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent

# These modules need no test file of their own. Each has the reason.
TESTED_ELSEWHERE = {
    "tfloss/common/command_variables.py": "constants only",
    "tfloss/distribute/strategy_names.py": "constants only",
    "tfloss/hooks/run_info.py": "a record without behaviour",
    "tfloss/hooks/trainer_protocol.py": "a type; pyright checks it",
    "tfloss/step/observation.py": "a record; tests/trainer/test_inspection.py reads it",
    "tfloss/step/watched.py": "records without behaviour; tests/step/test_watching.py makes them",
    "tfloss/trainer/replica_causes.py": "tests/trainer/test_replica_comparison.py names them",
    "tfloss/version.py": "a constant; tests/test_packaging.py compares it with the metadata",
}


def _test_file(module: str) -> Path:
    path = Path(module).relative_to("tfloss")
    return ROOT / "tests" / path.with_name(f"test_{path.name}")


def test_every_module_has_its_test_file():
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tfloss").rglob("*.py")
        if not path.name.startswith("_")  # __init__.py and private modules: see CONTRIBUTING.md
    }
    without = {module for module in modules if not _test_file(module).exists()}
    listed = set(TESTED_ELSEWHERE)

    unknown, outdated = sorted(without - listed), sorted(listed - without)
    assert not unknown, "Write a test file, or say in TESTED_ELSEWHERE why there is none."
    assert not outdated, "These have a test file now, or are gone: delete the entries."
