"""Plotly figures of batchopt's records: pure figure data, then drawing. Plotly is loaded by the first figure."""

from __future__ import annotations

from batchopt.visualization.forecast import plot_forecast
from batchopt.visualization.loss_curves import plot_loss_curves
from batchopt.visualization.noise_scale import plot_noise_scale
from batchopt.visualization.schedule import plot_schedule
from batchopt.visualization.spending import plot_spending
from batchopt.visualization.study import plot_study
from batchopt.visualization.study_history import plot_study_history
from batchopt.visualization.tradeoff import plot_plan_cost, plot_tradeoff
from batchopt.visualization.training import plot_training

__all__ = [
    "plot_forecast",
    "plot_loss_curves",
    "plot_noise_scale",
    "plot_plan_cost",
    "plot_schedule",
    "plot_spending",
    "plot_study",
    "plot_study_history",
    "plot_tradeoff",
    "plot_training",
]
