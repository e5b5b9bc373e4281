"""A report of a run before training as one HTML page, which loads nothing. Host code."""

import html
from collections.abc import Sequence

from tfloss.inspect.report import Inspection

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #1d2433; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .3rem 1rem .3rem .6rem; border-bottom: 1px solid #dde1ea;
  vertical-align: top; white-space: nowrap; }
th { background: #f3f5f9; }
td:last-child { width: 100%; min-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
.head td, .finding td { white-space: normal; overflow-wrap: anywhere; }
.finding td:first-child { font-weight: 600; min-width: 11rem; }
.finding td:nth-child(2), .finding td:nth-child(3) { min-width: 8rem; }
.finding tr:not(:first-child) { background: #fff7e6; }
@media (prefers-color-scheme: dark) { body { color: #e4e8f0; background: #14171f; }
  th { background: #212634; } th, td { border-color: #333a4b; }
  .finding tr:not(:first-child) { background: #2b2517; } }
"""


def page(report: Inspection) -> str:
    """Returns the report as a self-contained HTML page.

    Args:
      report: The report.
    """
    parts = [_table(report.headline(), "head", by_row=True)]
    findings = [["kind", "what", "line", "cure"]]
    findings += [[one.kind, one.subject, one.line, one.cure] for one in report.findings]
    parts.append(f"<h2>Findings: {len(report.findings) or 'none'}</h2>")
    if report.findings:
        parts.append(_table(findings, "finding"))
    for title, rows in report.tables().items():
        parts += [f"<h2>{html.escape(title)}</h2>", _table(rows, "")]
    title = html.escape(f"{report.model} before training")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _table(rows: Sequence[Sequence[str]], kind: str, *, by_row: bool = False) -> str:
    """A table with a header row, or with a header in each row."""
    lines: list[str] = []
    for index, row in enumerate(rows):
        tags = ["th" if (by_row and not i) or (not by_row and not index) else "td" for i in
                range(len(row))]  # fmt: skip
        cells = (f"<{tag}>{html.escape(c)}</{tag}>" for tag, c in zip(tags, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table class="{kind}">\n{chr(10).join(lines)}\n</table>'
    return f'<div class="scroll">{table}</div>'  # on a narrow screen, the table is moved
