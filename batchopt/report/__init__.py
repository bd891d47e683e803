"""The HTML report, and a study's figures for optuna-dashboard."""

from __future__ import annotations

from batchopt.report.comparison import Comparison
from batchopt.report.dashboard import save_to_dashboard
from batchopt.report.html import render_report, write_report

__all__ = ["Comparison", "render_report", "save_to_dashboard", "write_report"]
