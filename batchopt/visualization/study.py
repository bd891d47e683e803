"""Figure: the trials of a study in the plane of batch size and learning rate."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchopt.planning.plan import Plan
from batchopt.visualization.axes import Span, log_axis, round_numbers, span_of
from batchopt.visualization.canvas import BLACK, GREY, ORANGE, PURPLE, SKY, VERMILLION, blank
from batchopt.visualization.trials import Fate, StudyData, TrialPoint, study_data
from batchopt.visualization.wording import count, number

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

    from batchopt.search.parameters import Log2

_MARKS: dict[Fate, dict[str, Any]] = {
    "pruned before compute": {"symbol": "diamond-open", "size": 9, "color": GREY, "line": {"width": 1.5}},
    "pruned while running": {"symbol": "x-thin", "size": 9, "color": ORANGE, "line": {"width": 2.5, "color": ORANGE}},
    "running": {"symbol": "circle-open-dot", "size": 10, "color": SKY, "line": {"width": 2}},
    "failed": {"symbol": "square-x-open", "size": 9, "color": PURPLE, "line": {"width": 1.5}},
}


def plot_study(
    study: optuna.Study,
    plan: Plan | None = None,
    *,
    batch_size: str | Log2 | None = None,
    learning_rate: str | None = None,
) -> go.Figure:
    """Every trial at its batch size and learning rate: what it cost where it was completed, else what became of it.

    Args:
        study: an Optuna study.
        plan: marked in the plane, if given.
        batch_size: name of the batch-size parameter, where it is not a usual one.
        learning_rate: name of the learning-rate parameter, likewise.

    Raises:
        EvidenceError: the study has parameters, but no batch size or no learning rate among them.
    """
    return draw_study(study_data(study, batch_size=batch_size, learning_rate=learning_rate), plan)


def draw_study(data: StudyData, plan: Plan | None = None) -> go.Figure:
    """The figure of a study's data."""
    placed = [trial for trial in data.trials if trial.placed]
    planned = [] if plan is None else [(float(plan.batch_size), plan.learning_rate)]
    sizes = span_of([*(trial.batch_size or 0.0 for trial in placed), *(size for size, _ in planned)], least=8.0)
    rates = span_of([*(trial.learning_rate or 0.0 for trial in placed), *(rate for _, rate in planned)], least=8.0)
    figure = blank(
        "Trials of the study",
        xaxis=log_axis("batch size (examples per step)", sizes, powers=True),
        yaxis=log_axis("learning rate", rates),
    )
    if plan is not None:
        _add_plan(figure, plan)
    completed = [trial for trial in placed if trial.fate == "completed"]
    _add_points(figure, completed, name="completed", marker=_completed_marker(completed, data.quantity))
    for fate, marker in _MARKS.items():
        _add_points(figure, [trial for trial in placed if trial.fate == fate], name=fate, marker=marker)
    best = [trial for trial in placed if trial.number in data.best]
    ring = {"symbol": "circle-open", "size": 19, "color": BLACK, "line": {"width": 2}}
    _add_points(figure, best, name="best" if data.objectives == 1 else "Pareto front", marker=ring)
    return figure


def _completed_marker(trials: Sequence[TrialPoint], unit: str) -> dict[str, Any]:
    marker: dict[str, Any] = {"symbol": "circle", "size": 11, "color": BLACK, "line": {"width": 1, "color": "white"}}
    values = [trial.value for trial in trials if trial.value is not None]
    if not values or len(values) < len(trials):
        return marker
    colours = {"colorscale": "Viridis", "showscale": True}
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 14, "outlinewidth": 0}
    if min(values) <= 0:
        return marker | colours | {"color": values, "colorbar": bar}
    span = span_of(values, least=1.2, margin=0.0)
    ticks = round_numbers(span)
    bar |= {"tickvals": [Span(tick, tick).exponents[0] for tick in ticks], "ticktext": [number(tick) for tick in ticks]}
    low, high = span.exponents
    shades = [Span(value, value).exponents[0] for value in values]
    return marker | colours | {"color": shades, "cmin": low, "cmax": high, "colorbar": bar}


def _add_points(figure: go.Figure, trials: Sequence[TrialPoint], *, name: str, marker: dict[str, Any]) -> None:
    if not trials:
        return
    import plotly.graph_objects as go

    points = go.Scatter(
        x=[trial.batch_size for trial in trials],
        y=[trial.learning_rate for trial in trials],
        mode="markers",
        marker=marker,
        name=f"{name} ({len(trials)})" if name not in ("best", "Pareto front") else name,
        customdata=[_hover(trial) for trial in trials],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_trace(points)


def _add_plan(figure: go.Figure, plan: Plan) -> None:
    import plotly.graph_objects as go

    mark = go.Scatter(
        x=[plan.batch_size],
        y=[plan.learning_rate],
        mode="markers",
        marker={"symbol": "star", "size": 26, "color": VERMILLION, "line": {"width": 1, "color": "white"}},
        name=f"plan: batch size {count(plan.batch_size)}",
        customdata=[number(plan.learning_rate)],
        hovertemplate="plan: batch size %{x:,}, learning rate %{customdata}<extra></extra>",
    )
    figure.add_trace(mark)


def _hover(trial: TrialPoint) -> str:
    """Words of a trial; its reason comes from the study's storage, so it is shown as text, never as markup."""
    lines = [
        f"<b>trial {trial.number}, {trial.fate}</b>",
        f"batch size {number(trial.batch_size or 0.0)}, learning rate {number(trial.learning_rate or 0.0)}",
    ]
    if trial.value is not None:
        lines.append(f"objective {number(trial.value)}")
    if trial.examples:
        lines.append(f"{number(trial.examples)} examples")
    return "<br>".join([*lines, *map(html.escape, textwrap.wrap(trial.reason[:400], 60))])
