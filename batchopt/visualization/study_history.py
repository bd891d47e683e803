"""Figure: how a study's best trial improved over the training that it spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import BLUE, GREEN, blank
from batchopt.visualization.trials import StudyData, study_data

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

    from batchopt.search.parameters import Log2


class HistoryPoint(NamedTuple):
    """A completed trial: its value, the best so far, and the training that all trials up to it took together."""

    number: int
    spent: float
    value: float
    best: float


class HistoryData(NamedTuple):
    """The completed trials of a study in the order in which they ended.

    Attributes:
        points: one for each completed trial that has a value.
        counts_examples: whether `spent` is in examples; in trials where some completed trial reported nothing.
        spent: what all trials took together, with those that ended after the last completed one.
    """

    points: tuple[HistoryPoint, ...]
    counts_examples: bool
    spent: float


def history_data(data: StudyData) -> HistoryData:
    """The best value after each completed trial of a study of one objective."""
    counts_examples = all(trial.examples > 0 for trial in data.trials if trial.fate == "completed")
    points: list[HistoryPoint] = []
    spent = 0.0
    better = min if data.minimised else max
    for trial in data.trials:
        spent += trial.examples if counts_examples else 1.0
        if trial.value is not None:
            best = better(points[-1].best, trial.value) if points else trial.value
            points.append(HistoryPoint(trial.number, spent, trial.value, best))
    return HistoryData(tuple(points), counts_examples, spent)


def plot_study_history(
    study: optuna.Study,
    *,
    batch_size: str | Log2 | None = None,
    learning_rate: str | None = None,
) -> go.Figure:
    """Best value so far over the training that was spent, pruned trials counted.

    Args:
        study: an Optuna study of one objective; of several, the figure stays empty.
        batch_size: as in `plot_study`.
        learning_rate: as in `plot_study`.
    """
    return draw_history(study_data(study, batch_size=batch_size, learning_rate=learning_rate))


def draw_history(data: StudyData) -> go.Figure:
    """The figure of a study's data."""
    import plotly.graph_objects as go

    history = history_data(data)
    values = [point.value for point in history.points]
    positive = bool(values) and min(values) > 0
    figure = blank(
        "Best trial over the training spent",
        xaxis={
            "title": {"text": "examples trained by all trials" if history.counts_examples else "trials ended"},
            "range": [0, 1.05 * history.spent or 1.0],
            "tickformat": "~s",
        },
        yaxis=log_axis(data.quantity, span_of(values)) if positive else {"title": {"text": data.quantity}},
    )
    if not history.points:
        return figure
    last = history.points[-1]
    line = go.Scatter(
        x=[*(point.spent for point in history.points), history.spent],
        y=[*(point.best for point in history.points), last.best],
        mode="lines",
        line={"color": BLUE, "width": 2.5, "shape": "hv"},
        name="best so far",
        hovertemplate="best %{y:.4g}<extra></extra>",
    )
    dots = go.Scatter(
        x=[point.spent for point in history.points],
        y=values,
        mode="markers",
        marker={"color": GREEN, "size": 8, "line": {"width": 1, "color": "white"}},
        name="completed trial",
        customdata=[point.number for point in history.points],
        hovertemplate="trial %{customdata}: %{y:.4g}<extra></extra>",
    )
    figure.add_traces([line, dots])
    return figure
