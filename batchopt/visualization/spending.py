"""Figure: what each part of a probe spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchopt.evidence import ProbeReport
from batchopt.visualization.canvas import BLUE, LIGHT, blank
from batchopt.visualization.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Share(NamedTuple):
    """What one part took of the budget, in its examples; `share` is of all that was spent."""

    part: str
    of_budget: float
    share: float
    steps: int
    seconds: float


class SpendingData(NamedTuple):
    """The parts in their order, and the budget that was left, in examples (0 where it was overdrawn)."""

    shares: tuple[Share, ...]
    spent: float
    budget: int
    left: float


def spending_data(report: ProbeReport) -> SpendingData:
    """The parts of a probe with their shares; parts of one name are added up."""
    totals: dict[str, Share] = {}
    for part in report.spending:
        before = totals.get(part.part, Share(part.part, 0.0, 0.0, 0, 0.0))
        totals[part.part] = Share(
            part.part, before.of_budget + part.of_budget, 0.0, before.steps + part.steps, before.seconds + part.seconds
        )
    spent = report.budget_spent
    shares = tuple(share._replace(share=share.of_budget / spent if spent else 0.0) for share in totals.values())
    return SpendingData(shares, spent, report.budget_examples, max(0.0, report.budget_examples - spent))


def plot_spending(report: ProbeReport) -> go.Figure:
    """What each part of the probe took of the budget, and what was left."""
    return _draw(spending_data(report))


def _draw(data: SpendingData) -> go.Figure:
    import plotly.graph_objects as go

    names = [*(share.part for share in data.shares), "not spent"]
    examples = [*(share.of_budget for share in data.shares), data.left]
    labels = [
        *(f"{share.share:.0%} of what was spent" for share in data.shares),
        f"{data.left / data.budget:.0%} of the budget",
    ]
    figure = blank(
        f"The probe spent {number(data.spent)} of its budget of {number(data.budget)} examples",
        xaxis={"title": {"text": "examples of the budget"}, "rangemode": "tozero", "tickformat": "~s"},
        yaxis={"autorange": "reversed", "showgrid": False},
    )
    bars = go.Bar(
        x=examples,
        y=names,
        orientation="h",
        marker={"color": [BLUE] * len(data.shares) + [LIGHT]},
        text=labels,
        textposition="auto",
        hovertemplate="%{y}: %{x:,.0f} examples<extra></extra>",
        showlegend=False,
    )
    figure.add_trace(bars)
    figure.update_layout(height=140 + 36 * len(names), bargap=0.25)
    return figure
