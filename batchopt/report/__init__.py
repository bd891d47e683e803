"""The HTML report."""

from __future__ import annotations

from batchopt.report.comparison import Comparison
from batchopt.report.html import render_report, write_report

__all__ = ["Comparison", "render_report", "write_report"]
