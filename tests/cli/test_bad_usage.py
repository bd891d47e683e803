"""Wrong calls end with one clear line and the right exit code, and lose nothing."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from batchopt import Forecast, Plan, Schedule
from batchopt.cli.main import main
from batchopt.cli.schedule import OPTIONS
from batchopt.probing import short_runs
from batchopt.schedules.exporters.registry import EXPORTERS

GOAL = 0.4


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The one line that a failing command leaves on standard error, after its progress."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    errors = [line for line in lines if line.startswith("batchopt: error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    return errors[0]


def refuses(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What argparse says before it exits with code 2."""
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("probe",), "task"),
        (("prob",), "invalid choice"),
        (("probe", "t.py:task", "--examples", "many"), "a whole number is needed"),
        (("probe", "t.py:task", "--examples", "1.5"), "a positive whole number is needed"),
        (("probe", "t.py:task", "--seconds", "-1"), "a positive number is needed"),
        (("probe", "t.py:task", "--batch-sizes", "64:8"), "SMALLEST:LARGEST"),
        (("plan", "f.json"), "required"),
        (("plan", "f.json", "--reach-loss", "1", "--within", "2"), "not allowed with"),
        (("plan", "f.json", "--reach-loss", "nan"), "a positive number is needed"),
        (("plan", "f.json", "--reach-loss", "1", "--per-step", "-2"), "a positive number is needed"),
        (("tune", "t.py:task", "f.json", "--plan", "p.json", "--try", "64"), "BATCH:RATE"),
        (("explain", "s.db", "--last", "0"), "a positive whole number is needed"),
        (("explain", "s.db", "--last", "3", "--all"), "not allowed with"),
        (("schedule", "s.json", "--to", "nowhere"), "invalid choice"),
        (("train", "t.py:task", "s.json", "--log", "comet"), "a log is wandb, mlflow or tensorboard"),
        (("run", "t.py:task"), "the following arguments are required: --goal"),
        (("run", "t.py:task", "--goal", "loss=1", "--usual-run", "long"), "an amount is a number with a unit"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in refuses(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "f.json", "--reachloss", "1"), "there is no option --reachloss, did you mean --reach-loss?"),
        (("plan", "--withn=3", "f.json"), "there is no option --withn, did you mean --within?"),
        (("probe", "missing.py:task", "--exmples", "1000"), "there is no option --exmples, did you mean --examples?"),
        (("tune", "--trails", "3"), "there is no option --trails, did you mean --trials?"),
        (("probe", "missing.py:task", "--zzz"), "there is no option --zzz (batchopt probe --help"),
    ],
)
def test_a_mistyped_option_is_told_as_what_it_is(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    told = refuses(capsys, *arguments)
    assert told.startswith(f"batchopt {arguments[0]}: error: {said}")
    assert len(told.splitlines()) == 1


def test_options_may_be_shortened_and_values_may_begin_with_a_dash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "there is no file" in fails(capsys, "probe", str(tmp_path / "mistyped.py"), "--exam", "1000", "--seed=-1")


def test_arguments_that_do_not_go_together(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--examples N or --seconds S" in fails(capsys, "probe", flow.task, code=2)
    goalless = ("probe", flow.task, "--examples", "1000", "--least", "steps")
    assert "give the goal that the probe is for" in fails(capsys, *goalless, code=2)
    assert "--of belongs to --within" in fails(capsys, *goalless[:4], "--reach-loss", "0.5", "--of", "steps", code=2)
    assert "--schema" in fails(capsys, "schedule", code=2)
    assert "nothing to report" in fails(capsys, "report", code=2)
    assert "--least" in fails(capsys, "plan", flow.forecast, "--reach-loss", "0.5", "--of", "steps", code=2)
    assert "--of" in fails(capsys, "plan", flow.forecast, "--within", "5", "--least", "steps", code=2)


def test_an_export_s_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Schedule.constant(64, examples=6_400).save(tmp_path / "s.json")
    export = ("schedule", str(tmp_path / "s.json"), "--to")
    assert fails(capsys, *export, "nanogns", "--devices", "2", code=2).endswith(
        "--to nanogns needs --tokens-per-example --micro-batch; may take --data-parallel; "
        "missing: --tokens-per-example --micro-batch; not taken: --devices"
    )
    told = fails(capsys, *export, "ignite", "--devices", "2", "--micro-batch", "4", code=2)
    assert told.endswith("--to ignite needs nothing; not taken: --micro-batch --devices")


@pytest.mark.parametrize("to", EXPORTERS)
def test_the_help_of_schedule_lists_what_every_export_needs(capsys: pytest.CaptureFixture[str], to: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["schedule", "--help"])
    (line,) = re.findall(rf"^  --to {to} +(.+)$", capsys.readouterr().out, re.MULTILINE)
    options = list(inspect.signature(EXPORTERS[to]).parameters)[1:]
    assert [flag[2:].replace("-", "_") for flag in re.findall(r"--[a-z-]+", line)] == options
    assert OPTIONS.keys() >= set(options), "each is an argument of the command"


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (None, "task", "there is no file"),
        ("import nothing_like_that", "task", "does not import: ModuleNotFoundError"),
        ("def (", "task", "does not import: SyntaxError"),
        ("x = 1", "task", "has no name 'task'"),
        ("task = 3", "task", "must be a TrainingTask, got int"),
        ("import sys\nsys.exit(3)", "task", "does not import: SystemExit"),
    ],
)
def test_task_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, name: str, said: str
) -> None:
    file = tmp_path / "problem.py"
    if content is not None:
        file.write_text(content)
    assert said in fails(capsys, "probe", f"{file}:{name}", "--examples", "100000", "-o", str(tmp_path / "p.json"))
    assert not (tmp_path / "p.json").exists()


NOT_FINITE = """
import dataclasses, math
x = task.data[0].repeat({times}, 1)
x[{where}] = math.nan
task = dataclasses.replace(task, data=(x, task.data[1].repeat({times})))
"""


@pytest.mark.parametrize(("times", "where"), [(1, ":"), (20, "::5")])
def test_data_that_are_not_finite(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, times: int, where: str
) -> None:
    source = Path(flow.task.rpartition(":")[0]).read_text()
    (tmp_path / "bad.py").write_text(source + NOT_FINITE.format(times=times, where=where))
    told = fails(capsys, "probe", f"{tmp_path / 'bad.py'}:task", "--examples", "40000", "-o", str(tmp_path / "p.json"))
    assert "NaN or infinite values that make theirs nan" in told
    assert "leave such examples out, or fill them in" in told
    assert not (tmp_path / "p.json").exists()


def test_a_probe_that_no_run_survives_writes_nothing(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_runs, "_all_rates", lambda session, batch_size: [1e32, 1e31, 1e30])
    command = ("probe", flow.task, "--examples", "40000", "-o", str(tmp_path / "p.json"), "--learning-rate", "1e30")
    said = fails(capsys, *command)
    assert "no run that a forecast could be fitted to, and nothing was written: no run at batch size" in said
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_task_is_told_before_a_missing_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no file" in fails(capsys, "probe", f"{tmp_path / 'mistyped.py'}:task")


def test_a_forecast_that_was_asked_for_too_much_is_not_written(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "forecast.json"
    assert main(["forecast", flow.probe, "-o", str(out), "--loss", "90"]) == 1
    assert "loss must lie below the initial loss" in capsys.readouterr().err
    assert not out.exists()


def test_forecast_and_plan_agree_on_what_is_within_reach(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A loss without a critical batch size is reported; the forecast, which does not depend on it, is written."""
    out, initial = tmp_path / "forecast.json", Forecast.load(flow.forecast).initial_loss
    soon, far = f"{0.98 * initial:.4g}", "1e-9"
    assert main(["forecast", flow.probe, "-o", str(out), "--loss", soon, "--loss", far]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"No critical batch size: loss {soon} is reached too soon" in told
    assert "No critical batch size: loss 1e-09 is beyond what the forecast reaches" in told
    files = ("-o", str(tmp_path / "p"), "--schedule", str(tmp_path / "s"))
    assert main(["plan", str(out), "--reach-loss", soon, *files]) == 0
    assert main(["plan", str(out), "--reach-loss", far, *files]) == 1


def test_the_plan_of_another_task_is_reported(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = Path(flow.task.rpartition(":")[0]).read_text()
    schedule = tmp_path / "s.json"
    Schedule.constant(50, examples=1_000, learning_rate=0.1).save(schedule)
    changes = {
        "task": ("", ""),
        "wider": ("nn.Linear(12, 4)", "nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 4))"),
        "fewer": ("data=(x, y)", "data=(x[:500], y[:500])"),
    }
    told = {}
    for name, change in changes.items():
        (tmp_path / f"{name}.py").write_text(source.replace(*change) if change[0] else source)
        capsys.readouterr()
        main(["train", f"{tmp_path / name}.py:task", str(schedule), "--plan", flow.plan])
        told[name] = " ".join(capsys.readouterr().out.split())
    warning = "Warning: the plan is of another task"
    assert warning not in told["task"]
    assert f"{warning} (it was of 52 trainable parameters, and this task has 72)" in told["wider"]
    assert f"{warning} (it was of 600 examples in the data, and this task has 500)" in told["fewer"]


def test_a_probe_to_which_no_forecast_can_be_fitted_says_so(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchopt.forecasting.schedule_fit.LEAST_POINTS", 10_000)
    out = tmp_path / "p.json"
    assert main(["probe", flow.task, "--examples", "3000", "-o", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "to which no forecast can be fitted: a law needs 10000 losses after the first, got" in told
    assert "next:" not in told
    assert "a law needs 10000 losses" in fails(capsys, "forecast", str(out), "-o", str(tmp_path / "f.json"))


def test_goals_out_of_reach(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("-o", str(tmp_path / "p"), "--schedule", str(tmp_path / "s"))
    fails(capsys, "plan", flow.forecast, "--reach-loss", "1e-9", *out)
    assert "the initial loss" in fails(capsys, "plan", flow.forecast, "--reach-loss", "50", *out)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_misses_the_plan_s_loss_fails_when_all_is_written(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = {f"--{name}": tmp_path / name for name in ("save", "metrics")}
    command = ["train", flow.task, flow.schedule, "--plan", flow.plan, "--learning-rate", "1e-4", "--json"]
    command += [str(part) for pair in kept.items() for part in pair]
    assert main(command) == 1
    out, err = capsys.readouterr()
    found, plan = json.loads(out), Plan.load(flow.plan)
    assert (found["reached_at_examples"], found["compared"]) == (None, [])
    assert all(file.stat().st_size > 0 for file in kept.values())
    line = err.splitlines()[-1]
    assert line.startswith(f"batchopt: error: the plan's loss of {GOAL} was not reached")
    assert f"{found['loss']:.4g} after {found['examples']:,} examples, where nine of ten runs were expected" in line
    assert found["examples"] == plan.schedule.examples


def test_a_run_that_decides_when_to_decay_has_the_plan_s_rate(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", flow.task, flow.schedule, "--plan", flow.plan, "--adapt", flow.forecast]
    assert "predicts runs at the plan's learning rate" in fails(capsys, *command, "--learning-rate", "1e-4")


def test_too_small_a_budget(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = fails(capsys, "probe", flow.task, "--examples", "400", "-o", str(tmp_path / "p.json"))
    assert "budget" in said


def test_a_finished_probe_is_not_overwritten(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(flow.probe).read_text()
    told = fails(capsys, "probe", flow.task, "--examples", "40000", "-o", flow.probe)
    assert told.endswith("probe.json is there already: give another name with -o, or delete it to probe again")
    assert Path(flow.probe).read_text() == before


def test_folders_that_are_missing_are_told_before_the_work(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing" / "file")
    assert "there is no folder" in fails(capsys, "train", flow.task, flow.schedule, "--save", missing)
    tune = ("tune", flow.task, flow.forecast, "--plan", flow.plan)
    assert "there is no folder" in fails(capsys, *tune, "--study", missing)
    assert "there is no study file" in fails(capsys, "explain", missing)


def test_a_study_of_another_name_and_a_file_that_is_none(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("one", "other"):  # the only one would be taken
        optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name=name)
    told = fails(capsys, "explain", str(tmp_path / "study.db"))
    assert "no study named 'batchopt': it holds 'one', 'other'" in told
    (tmp_path / "text.db").write_text("this is no data base, " * 100)
    assert "cannot be opened as an Optuna storage" in fails(capsys, "explain", str(tmp_path / "text.db"))


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", "missing.json", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_nobody_foresaw_is_one_line_as_well(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "problem.py"
    file.write_text(Path(flow.task.rpartition(":")[0]).read_text().replace("nn.Linear(12, 4)", "nn.Linear(11, 4)"))
    said = fails(capsys, "probe", f"{file}:task", "--examples", "40000", "-o", str(tmp_path / "p.json"))
    assert "shapes cannot be multiplied" in said


@pytest.mark.parametrize(
    "verb",
    ["demo", "init", "doctor", "run", "probe", "forecast", "plan", "tune", "explain", "train", "schedule", "report"],
)
def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"  batchopt {verb}" in text.partition("options:")[0].partition("\n\n")[2]
    assert "--json" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("batchopt 0.")
