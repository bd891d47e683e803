"""`batchopt forecast` of logs, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.test_bad_usage import fails
from forecasting.test_past_runs import RUNS

from batchopt import Forecast
from batchopt.cli.main import main


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of some runs."""
    folder = tmp_path_factory.mktemp("logs")
    lines = ["run,batch_size,lr,step,train_loss"]
    for number, run in enumerate(RUNS[:3]):
        assert run.training is not None
        schedule = run.learning_rate_schedule
        for n, loss in zip(run.training.examples, run.training.losses, strict=True):
            rate = run.learning_rate * (1.0 if schedule is None else schedule(n))
            lines.append(f"r{number},{run.batch_size},{rate!r},{round(n / run.batch_size)},{loss!r}")
    (folder / "runs.csv").write_text("\n".join(lines))
    (folder / "more.csv").write_text("\n".join([f"{lines[0]},seed", *(f"{line},1" for line in lines if "r0" in line)]))
    return folder


def test_from_logs_to_a_plan_and_a_report(logs: Path, capsys: pytest.CaptureFixture[str], few_points: None) -> None:
    forecast, plan, page = (str(logs / name) for name in ("forecast.json", "plan.json", "page.html"))
    schedule = str(logs / "schedule.json")
    assert main(["forecast", str(logs / "runs.csv"), "--no-adaptive", "-o", forecast]) == 0
    told = capsys.readouterr().out
    assert "from 80% to 100%" in told
    assert "Every setting was run with a single seed" in told
    assert "--reach-loss LOSS --per-step A --per-example B" in told
    assert "no step was timed" in told
    assert "--per-step" in fails(capsys, "plan", forecast, "--reach-loss", "0.4")
    price = ["--per-step", "64", "--per-example", "1"]
    assert main(["plan", forecast, "--reach-loss", "0.4", *price, "-o", plan, "--schedule", schedule]) == 0
    assert "given units" in capsys.readouterr().out
    assert main(["report", "--forecast", forecast, "--plan", plan, "-o", page]) == 0
    assert "losses were seen down to" in Path(page).read_text()


def test_several_logs_a_probe_and_json(flow: Any, logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(logs / "all.json")
    assert main(["forecast", str(logs / "runs.csv"), str(logs / "more.csv"), "--no-adaptive", "-o", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == out
    assert Forecast.load(out).law.batch_sizes == (16, 64)
    together = ["forecast", flow.probe, str(logs / "more.csv"), "-o", out]
    assert "must begin at about the same loss, and the probe's begins at" in fails(capsys, *together)
    assert main([*together, "--initial-loss", "1.6"]) == 0
    assert Forecast.load(out).step_cost == Forecast.load(flow.forecast).step_cost


def test_what_the_log_does_not_hold_is_given(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--no-adaptive", "-o", str(tmp_path / "f.json")]
    lines = (logs / "runs.csv").read_text().splitlines()
    bare = [",".join(line.split(",")[k] for k in (0, 3, 4)) for line in lines]
    (tmp_path / "bare.csv").write_text("\n".join(bare).replace("train_loss", "ce"))
    (tmp_path / "table.csv").write_text("run,batch_size,lr,schedule\nr0,16,0.1,wsd\nr1,16,0.4,wsd\nr2,64,0.2,wsd\n")
    arguments = ["forecast", str(tmp_path / "bare.csv"), "--column", "training_loss=ce", *out]
    assert "it has no batch_size" in fails(capsys, *arguments)
    assert main([*arguments, "--settings", str(tmp_path / "table.csv")]) == 0
    assert Forecast.load(tmp_path / "f.json").law.batch_sizes == (16, 64)
    assert main([*arguments, "--set", "batch_size=32", "--set", "learning_rate=0.1", "--initial-loss", "2.3"]) == 0
    assert Forecast.load(tmp_path / "f.json").initial_loss == 2.3


def test_arguments_that_do_not_go_together(flow: Any, logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(logs / "runs.csv")
    assert "--set and --settings" in fails(capsys, "forecast", log, "--set", "seed=1", "--settings", "t.csv", code=2)
    assert "is of one probe" in fails(capsys, "forecast", flow.probe, flow.plan, code=2)
    assert "are for logs of runs" in fails(capsys, "forecast", flow.probe, "--set", "seed=1", code=2)
    assert "is given twice: leave one out" in fails(capsys, "forecast", log, f"{logs}/./runs.csv", code=2)
    assert "named twice" in fails(capsys, "forecast", log, "-o", log, code=2)
    with pytest.raises(SystemExit, match="2"):
        main(["forecast", log, "--set", "batch_size"])
    assert "NAME=VALUE is needed, batch_size=64 for example, got 'batch_size'" in capsys.readouterr().err
    assert "missing.csv: there is no such file" in fails(capsys, "forecast", str(logs / "missing.csv"))
