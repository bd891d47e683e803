"""The demo, with a small budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchopt import Forecast, Plan, ProbeReport, Schedule
from batchopt.cli.main import main


def test_the_demo_shows_six_steps_and_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "out"), "--examples", "100000", "--trials", "4"]) == 0
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
    assert len(report.noise_scales) >= 4
    losses = [reading.at.loss for reading in report.noise_scales if reading.at is not None]
    assert max(losses) > 8 * min(losses)
    assert Forecast.load(out / "forecast.json").step_cost == report.step_cost
    assert Plan.load(out / "plan.json").schedule == Schedule.load(out / "schedule.json")
