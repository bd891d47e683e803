"""What a probe leaves out where it knows its goal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from probing.test_probe import BUDGET, make_task

import batchopt.probing.probe as probe_module
from batchopt.errors import RecordError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.probing.aim import Aim, aim_of
from batchopt.probing.budget import price_of
from batchopt.probing.probe import probe
from batchopt.step_cost import StepCost

PRICE = StepCost(64.0, 1.0, unit="examples")
NEAR = ReachLoss(0.6, PRICE)
"""Every short run of the probe has been below this loss, after a cooldown."""


@pytest.fixture(scope="module")
def whole() -> ProbeReport:
    return probe(make_task(), examples=BUDGET, seed=3)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aim") / "journal"


@pytest.fixture(scope="module")
def early(journal: Path) -> ProbeReport:
    return probe(make_task(), examples=BUDGET, seed=3, goal=NEAR, journal=journal)


def test_a_probe_ends_where_longer_runs_cost_more_than_they_save(early: ProbeReport, whole: ProbeReport) -> None:
    assert early.stopped is None
    assert early.budget_spent < 0.75 * whole.budget_spent
    assert {part.part for part in early.spending}.isdisjoint({"long runs", "cooldowns of long runs"})
    settings, before = (
        {(run.batch_size, run.learning_rate, run.learning_rate_schedule) for run in report.runs}
        for report in (whole, early)
    )
    assert before < settings
    assert len(settings - before) == 4  # two cooldowns off each long run
    assert early.reference is not None
    assert early.reference.batch_size == max(run.batch_size for run in early.runs)
    assert early.decisions[-1].endswith(("so none was made.", "so none went on."))
    assert Forecast.fit(early).plan(NEAR).batch_size >= 1


def test_what_was_decided_is_said_in_order(whole: ProbeReport, early: ProbeReport) -> None:
    assert whole.decisions[:-1] == early.decisions[:-2]
    assert early.decisions[-2].startswith("By the short runs the goal takes batch size ")
    begins = ("Batch sizes 4 and 32", "A learning rate that rose", "Of ", "Of ", "Of ", "At batch size 32, ")
    for begin, decision in zip(begins, whole.decisions, strict=False):
        assert decision.startswith(begin)
    assert whole.decisions[-1].startswith("The best short run went on, to ")


def test_the_same_call_goes_on_and_another_goal_is_refused(early: ProbeReport, journal: Path) -> None:
    assert probe(make_task(), examples=BUDGET, seed=3, goal=NEAR, journal=journal) == early
    for other in (None, ReachLoss(0.5, PRICE)):
        with pytest.raises(RecordError, match="keeps the finished parts of another probe"):
            probe(make_task(), examples=BUDGET, seed=3, goal=other, journal=journal)


@pytest.mark.parametrize("evaluated", [16, 600])
def test_no_run_is_longer_than_the_planned_one(whole: ProbeReport, evaluated: int) -> None:
    assert whole.reference is not None
    horizon = 0.9 * whole.reference.examples
    x, y = make_task().data
    task = make_task(eval_data=(x[:evaluated], y[:evaluated]))
    report = probe(task, examples=BUDGET, seed=3, goal=LowestLoss(horizon, of="examples"))
    ends = [run.falls[1] for run in report.runs if run.falls is not None]
    assert 0.8 * horizon < max(ends) <= horizon + 32  # the cooldown takes whole steps
    assert max(run.examples for run in report.runs) <= horizon
    assert report.budget_spent < whole.budget_spent


def test_a_goal_out_of_reach_takes_the_whole_probe(whole: ProbeReport) -> None:
    report = probe(make_task(), examples=BUDGET, seed=3, goal=ReachLoss(1e-6, PRICE))
    assert (report.reference, set(report.branches)) == (whole.reference, set(whole.branches))
    assert report.decisions[-2].startswith("There is no plan for the goal from the short runs yet (")


@pytest.mark.parametrize(("saved", "goes_on"), [(10.0, False), (1e9, True)])
def test_long_runs_are_made_if_they_cost_less_than_they_save(
    whole: ProbeReport, monkeypatch: pytest.MonkeyPatch, saved: float, goes_on: bool
) -> None:
    monkeypatch.setattr(probe_module, "aim_of", lambda *_: Aim(1e9, saved, "Far away."))
    report = probe(make_task(), examples=BUDGET, seed=3, goal=NEAR)
    assert report.decisions[-2] == "Far away."
    assert report.decisions[-1].endswith("so none was made.") != goes_on
    assert (set(report.branches) == set(whole.branches)) == goes_on


def test_what_is_saved_is_the_expected_regret_of_the_plan(whole: ProbeReport) -> None:
    goal = ReachLoss(0.4, PRICE)
    plan = Forecast.fit(whole).plan(goal)
    assert plan.expected_regret is not None
    aim = aim_of(whole, goal, price_of(64.0))
    cost = plan.steps.value * (64.0 + plan.batch_size)
    assert aim.horizon == plan.horizon
    # What is left when the expected regret is gone.
    assert cost - aim.saved == pytest.approx(cost / (1.0 + plan.expected_regret))
    assert math.isinf(aim_of(whole, LowestLoss(5_000, of="examples"), price_of(0.0)).saved)


def test_a_goal_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"goal must be one of batchopt\.ReachLoss, batchopt\.LowestLoss, .*, got 0\.3"):
        probe(make_task(), examples=BUDGET, goal=0.3)  # type: ignore[arg-type]
