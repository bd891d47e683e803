from __future__ import annotations

from dataclasses import replace

import pytest

from batchopt.evidence import ProbeReport, Spending
from batchopt.visualization.spending import plot_spending, spending_data


def test_shares_add_up(report: ProbeReport) -> None:
    data = spending_data(report)
    assert [share.part for share in data.shares] == [part.part for part in report.spending]
    assert sum(share.share for share in data.shares) == pytest.approx(1.0)
    assert data.spent + data.left == data.budget == 200_000


def test_parts_of_one_name_are_added(report: ProbeReport) -> None:
    twice = replace(
        report, spending=(Spending("a", 10.0, 1, 0.5), Spending("b", 30.0, 2, 1.0), Spending("a", 20.0, 3, 1.5))
    )
    first, second = spending_data(twice).shares
    assert first == ("a", 30.0, 0.5, 4, 2.0)
    assert second.share == 0.5


def test_an_overdrawn_budget_leaves_nothing(report: ProbeReport) -> None:
    assert spending_data(replace(report, budget_examples=10)).left == 0.0


def test_bars_are_the_parts_and_the_rest(report: ProbeReport) -> None:
    (bars,) = plot_spending(report).data
    assert bars.y[-1] == "not spent"
    assert sum(bars.x) == 200_000
    assert bars.text[-1] == "10% of the budget"


def test_nothing_spent_still_renders(report: ProbeReport) -> None:
    assert plot_spending(replace(report, spending=())).to_json()
