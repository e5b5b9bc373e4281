"""The page of a report has every part of it, loads nothing, and escapes names."""

import dataclasses
from html.parser import HTMLParser

from tests.inspect.test_report import REPORT
from tfloss.inspect.report import Finding
from tfloss.inspect.report_page import page


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.links, self._cell = [], [], False

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th")
        if self._cell:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self._cell = False


def test_the_page_has_every_part():
    report = dataclasses.replace(
        REPORT, findings=(*REPORT.findings, Finding("Odd", "<b>", "f.py:1, in <lambda>", ""))
    )
    found = _Cells()
    found.feed(page(report))
    assert ["parameters", "1,234 (1,200 trained)"] in found.rows
    assert ["box", "net/head", "0.5", "float16", "optimizer", "net.py:3, in call"] in found.rows
    assert ["net/w", "2x3", "float32", "-", "no", "-", "-"] in found.rows
    assert ["Odd", "<b>", "f.py:1, in <lambda>", ""] in found.rows
    assert found.links == [] and "url(" not in page(report) and "@import" not in page(report)
