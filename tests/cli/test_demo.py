"""The demo, with a small budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from visualization.samples import plan_of

from batchopt import Estimate, Forecast, LossCurve, Plan, ProbeReport, Schedule, Segment
from batchopt.cli.console import Console
from batchopt.cli.demo import cost_to_the_loss, show_worse_study
from batchopt.cli.main import main
from batchopt.cli.training import show_comparison
from batchopt.report.comparison import Comparison
from batchopt.training.result import Measured, TrainingResult

RESULT = TrainingResult(
    model=torch.nn.Linear(1, 1),
    schedule=Schedule((Segment(0, 8), Segment(80, 16)), examples=400),
    measured=Measured(LossCurve((0, 400), (2.0, 0.5)), (0.0, 1.0), 0.1),
    steps=30,
    examples=400,
    seconds=1.0,
    reached=104.0,
    outcome="reached",
)


@pytest.mark.usefixtures("few_points", "few_reports")
def test_the_demo_shows_six_steps_and_leaves_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sixth of the demo's probe: its loss is reached in nine runs of ten, and this one in all.
    monkeypatch.setattr("batchopt.cli.demo.GOAL_LOSS", 0.3)
    assert main(["demo", "-o", str(tmp_path / "out"), "--examples", "50000", "--trials", "3"]) == 0
    text = capsys.readouterr().out.replace(str(tmp_path), "")
    for step in ("1. Probe", "2. Forecast", "3. Plan", "4. Study", "5. Train"):
        assert step in text
    assert "measured / predicted" in text
    assert "pruned before compute" in text
    assert max(map(len, text.splitlines())) <= 110, "it fits a terminal"
    out = tmp_path / "out"
    names = {"probe.json", "forecast.json", "plan.json", "schedule.json", "study.db", "report.html"}
    assert {file.name for file in out.iterdir()} == names
    report = ProbeReport.load(out / "probe.json")
    assert len(report.noise_scales) == 3
    losses = [reading.at.loss for reading in report.noise_scales if reading.at is not None]
    assert max(losses) > 4 * min(losses)
    assert Forecast.load(out / "forecast.json").step_cost == report.step_cost
    assert Plan.load(out / "plan.json").schedule == Schedule.load(out / "schedule.json")


def test_the_price_of_a_run_counts_the_steps_to_the_loss() -> None:
    plan = plan_of()
    assert cost_to_the_loss(plan, RESULT) == pytest.approx(10 * plan.price(8) + 1.5 * plan.price(16), rel=1e-12)
    assert cost_to_the_loss(plan, replace(RESULT, reached=None)) is None


@pytest.mark.parametrize(("factor", "told"), [(None, False), (0.9, False), (1.1, True)])
def test_a_study_that_is_worse_than_the_plan_is_told(
    capsys: pytest.CaptureFixture[str], factor: float | None, told: bool
) -> None:
    plan, study = plan_of(), optuna.create_study()
    own = cost_to_the_loss(plan, RESULT)
    assert own is not None
    if factor is not None:
        study.add_trial(optuna.trial.create_trial(value=factor * own))
    show_worse_study(study, plan, RESULT, Console(as_json=False))
    text = " ".join(capsys.readouterr().out.split())
    assert ("The study's best trial cost more than this run" in text) == told
    assert (f"{own:.3g} at the same price of a step: a study of 1 trials" in text) == told


def test_only_what_misses_its_interval_is_commented_on(capsys: pytest.CaptureFixture[str]) -> None:
    predicted = Estimate(100.0, 80.0, 120.0, True)
    rows = [Comparison(name, predicted, measured) for name, measured in (("steps", 130.0), ("examples", 110.0))]
    show_comparison(RESULT, rows, Console(as_json=False))
    assert "- Outside of its 90 % interval: steps. One in ten" in capsys.readouterr().out
    show_comparison(RESULT, rows[1:], Console(as_json=False))
    assert "Outside" not in capsys.readouterr().out
