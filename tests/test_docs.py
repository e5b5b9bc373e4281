"""What is generated in docs/ is what the generators write."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_statements_is_up_to_date():
    module = runpy.run_path(str(DOCS / "correctness.py"))
    assert (DOCS / "correctness.md").read_text() == module["table"]()
    held = {n for n, rows in module["promises"]().items() if not all(row[2] for row in rows)}
    assert held == set(module["STATEMENTS"])
