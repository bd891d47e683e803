"""`batchopt run`: from a task and a goal to a plan, and on."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from batchopt import Forecast, LowestLoss, Plan, ProbeReport, ReachLoss, Schedule
from batchopt.cli.console import Console
from batchopt.cli.estimate import RUNS, expected
from batchopt.cli.main import main
from batchopt.probing.branches import MOST_EVALUATIONS
from batchopt.probing.budget import BatchSizes, price_of
from batchopt.step_cost import StepCost

FILES = {"probe.json", "forecast.json", "plan.json", "schedule.json", "report.html"}


@pytest.fixture
def probed(flow: Any, tmp_path: Path) -> Path:
    """A folder in which an earlier call has finished its probe."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(flow.probe, out / "probe.json")
    return out


@pytest.fixture
def with_accuracy(flow: Any, tmp_path: Path) -> str:
    """The same task with a metric."""
    metric = 'metrics={"accuracy": lambda model, batch: model(batch[0]).argmax(1) == batch[1]},\n    device="cpu"'
    (tmp_path / "measured.py").write_text(
        Path(flow.task.rpartition(":")[0]).read_text().replace('device="cpu"', metric)
    )
    return f"{tmp_path / 'measured.py'}:task"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object of a run."""
    capsys.readouterr()
    assert main(["run", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the error of a run that fails."""
    capsys.readouterr()
    code = main(["run", *arguments])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.usefixtures("few_points")
def test_from_a_task_to_a_plan_and_its_next_command(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["run", flow.task, "--goal", "loss=0.5", "--usual-run", "25epochs", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "a budget of 15,000 examples, as much as a usual run of 25epochs takes" in text
    assert {file.name for file in out.iterdir()} == FILES
    report, plan = ProbeReport.load(out / "probe.json"), Plan.load(out / "plan.json")
    assert report.budget_examples == 15_000
    assert plan.goal == ReachLoss(0.5)
    assert plan.schedule == Schedule.load(out / "schedule.json")
    places = [
        text.index(words)
        for words in ("Plan for a loss of 0.5 in the fewest seconds", f"batch size {plan.batch_size}", "what it costs",
                      "how sure", "why", "what it rests on", "next: batchopt train")
    ]  # fmt: skip
    assert places == sorted(places)
    command = shlex.split(text.splitlines()[-1].removeprefix("next: batchopt "))
    assert command[:5] == ["train", flow.task, str(out / "schedule.json"), "--plan", str(out / "plan.json")]
    assert ("--adapt" in command) == (plan.learning_rate_schedule == "wsd")
    assert command[-2:] == ["--save", str(out / "weights.pt")]


@pytest.mark.usefixtures("few_points")
def test_the_same_command_goes_on_where_it_was_interrupted(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Console, part: str, done: float | None) -> None:
        if part.startswith("short runs, small"):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    command = ["run", flow.task, "--goal", "loss=0.5", "--examples", "15000", "-o", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(Console, "progress", stop)
        assert main(command) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on where it stopped\n")
    kept = {file.name: file.read_bytes() for file in (out / "probe.json.partial").glob("*.json")}
    assert len(kept) > 3
    assert {file.name for file in out.iterdir()} == {"probe.json.partial"}
    assert refused(capsys, *command[1:5], "16000", *command[6:])[0] == 1, "another budget is another probe"
    done: list[str] = []

    def watch(self: Console, part: str, share: float | None) -> None:
        done.append(part)

    monkeypatch.setattr(Console, "progress", watch)
    assert main(command) == 0
    assert {file.name for file in out.iterdir()} == FILES
    assert "short runs, small batch" in done


@pytest.mark.usefixtures("few_points")
def test_a_finished_probe_serves_for_another_goal(flow: Any, capsys: pytest.CaptureFixture[str], probed: Path) -> None:
    before = (probed / "probe.json").read_bytes()
    options = ["--learning-rate-schedule", "cosine", "--batch-sizes", "4:32"]
    found = told(capsys, flow.task, "--goal", "within=10epochs", "-o", str(probed), *options)
    plan = Plan.load(probed / "plan.json")
    assert (probed / "probe.json").read_bytes() == before
    assert plan.goal == LowestLoss(6_000.0, of="examples")
    assert plan.learning_rate_schedule == "cosine" == found["learning_rate_schedule"]
    assert 4 <= found["batch_size"] <= 32
    assert found["examples_spent"] == ProbeReport.load(flow.probe).examples_spent
    assert "--adapt" not in found["next"]


@pytest.mark.usefixtures("few_points", "few_reports")
def test_training_follows_at_once_and_goes_on_from_its_checkpoint(
    flow: Any, capsys: pytest.CaptureFixture[str], probed: Path
) -> None:
    command = (flow.task, "--goal", "loss=0.45", "--least", "examples", "--learning-rate-schedule", "wsd", "--train",
               "--log", f"tensorboard:{probed / 'board'}", "-o", str(probed))  # fmt: skip
    first = told(capsys, *command)
    assert first["training"]["reached_at_examples"] is not None
    assert {row["name"] for row in first["training"]["compared"]} >= {"steps", "examples"}
    assert list((probed / "board").iterdir())
    losses = [json.loads(line)["loss"] for line in (probed / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] == first["training"]["loss"]
    assert "Predicted beside measured" in (probed / "report.html").read_text()
    assert set(torch.load(probed / "weights.pt")) == {"weight", "bias"}
    again = told(capsys, *command)
    assert again["training"]["resumed_at_examples"] == again["training"]["examples"] == first["training"]["examples"]


@pytest.mark.usefixtures("few_points", "few_reports")
def test_a_second_goal_has_a_training_of_its_own(flow: Any, capsys: pytest.CaptureFixture[str], probed: Path) -> None:
    goals = (("within=9000examples", "cosine"), ("within=6000examples", "cosine"), ("loss=0.45", "wsd"),
             ("loss=0.5", "wsd"))  # fmt: skip
    names = set()
    for goal, shape in goals:
        command = (flow.task, "--goal", goal, "--learning-rate-schedule", shape, "--train", "-o", str(probed))
        found = told(capsys, *command)
        assert found["training"]["resumed_at_examples"] is None
        words = shlex.split(found["next"])
        names.add(words[words.index("--checkpoint") + 1])
    assert len(names) == len(goals)
    assert names == {str(file) for file in probed.glob("run-*.checkpoint")}


@pytest.mark.usefixtures("few_points")
def test_a_goal_in_a_metric_is_compared(with_accuracy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ("--goal", "accuracy=0.85", "--least", "examples", "--learning-rate-schedule", "cosine",
               "--usual-run", "25epochs", "--train", "-o", str(tmp_path / "out"))  # fmt: skip
    found = told(capsys, with_accuracy, *command)
    measured = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])["accuracy"]
    rows = {row["name"]: row for row in found["training"]["compared"]}
    assert rows["accuracy at the end"]["measured"] == measured > 0.8
    assert rows["accuracy at the end"]["predicted"] == found["metrics"]["accuracy"]
    assert "accuracy at the end" in (tmp_path / "out" / "report.html").read_text()


def test_what_a_probe_will_spend_is_said_before_and_nothing_is_written(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (flow.task, "--goal", "loss=0.4", "--examples", "40000", "--dry-run", "-o", str(out))
    found = told(capsys, *command)
    assert not out.exists()
    report = ProbeReport.load(flow.probe)
    assert 0.8 * report.examples_spent < found["examples"] <= 40_000
    assert 0.6 * report.steps_spent < found["steps"] < 1.6 * report.steps_spent
    assert found["seconds"] > 0
    small, large = found["batch_sizes"]
    assert {run.batch_size for run in report.runs} == {small, large}
    assert main(["run", *command]) == 0
    text = capsys.readouterr().out
    assert "the probe has a budget of 40,000 examples; it would spend about" in text
    assert "an evaluation of 200 examples takes" in text
    assert "nothing was written" in text


def test_metrics_cost_a_probe_steps(
    flow: Any, with_accuracy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ("--goal", "loss=0.4", "--examples", "1000000", "--dry-run", "-o", str(tmp_path / "out"))
    without, found = told(capsys, flow.task, *command), told(capsys, with_accuracy, *command)
    assert found["batch_sizes"] == without["batch_sizes"]
    assert found["evaluations"] == without["evaluations"], "as many as a probe makes at most"
    for own, other in zip(found["parts"], without["parts"], strict=True):
        assert (own["part"], own["examples"]) == (other["part"], pytest.approx(other["examples"]))
    search = [next(p for p in each["parts"] if p["part"] == "learning-rate search") for each in (without, found)]
    evaluations = MOST_EVALUATIONS * RUNS["learning-rate search"]
    saved = evaluations * 200 / 3.0 / without["batch_sizes"][1]
    assert search[0]["steps"] - search[1]["steps"] == pytest.approx(saved)


def test_a_dry_run_beside_a_finished_probe_spends_nothing(
    flow: Any, capsys: pytest.CaptureFixture[str], probed: Path
) -> None:
    found = told(capsys, flow.task, "--goal", "loss=0.4", "--dry-run", "-o", str(probed))
    assert (found["examples"], found["steps"]) == (0, 0)


def test_seconds_are_a_budget_as_well(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = told(capsys, flow.task, "--goal", "within=20s", "--dry-run", "-o", str(tmp_path / "out"))
    assert 5.0 < found["seconds"] <= 20.0, "some of it is left for what are no steps"


@pytest.mark.usefixtures("few_points")
def test_a_probe_by_seconds_serves_for_as_many_only(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = (flow.task, "--goal", "within=1s", "-o", str(tmp_path / "out"))
    spent = told(capsys, *command, "--seconds", "5")["examples_spent"]
    assert told(capsys, *command, "--usual-run", "5s")["examples_spent"] == spent
    assert "is a probe of 5 s, and 6 s are asked for" in refused(capsys, *command, "--seconds", "6")[1]
    assert "and 15,000 examples are asked for" in refused(capsys, *command, "--examples", "15000")[1]
    both = refused(capsys, *command, "--examples", "900000000", "--seconds", "5")[1]
    assert "is a probe of 5 s, and 900,000,000 examples and 5 s are asked for" in both


def test_the_expected_work_is_the_shares_of_the_budget() -> None:
    sizes, cost = BatchSizes(small=8, search=64, large=64), StepCost(1e-3, 1e-5)
    works = {w.part: w for w in expected(100_000, price_of(0.0), sizes, cost, evaluation=0.5, charged=100.0)}
    large = works["short runs, large batch"]
    assert large.evaluations == 9, "three of each run"
    assert large.steps == pytest.approx((18_000 - 9 * 100) / 64)
    assert large.seconds == pytest.approx(large.steps * cost(64) + 9 * 0.5)
    assert works["short runs, small batch"].steps == pytest.approx(8 * large.steps)
    dear = {w.part: w for w in expected(100_000, price_of(0.0), sizes, cost, evaluation=0.5, charged=10_000.0)}
    assert dear["short runs, large batch"].evaluations == pytest.approx(0.12 * 18_000 / 10_000), "a share at most"


def test_budgets_and_folders_that_do_not_fit(
    flow: Any, capsys: pytest.CaptureFixture[str], probed: Path, tmp_path: Path
) -> None:
    goal, out = ("--goal", "loss=0.4"), ("-o", str(probed))
    code, line = refused(capsys, flow.task, *goal, "-o", str(tmp_path / "new"))
    assert (code, "give --usual-run" in line, "one epoch is 600 examples" in line) == (2, True, True)
    assert not (tmp_path / "new").exists()
    code, line = refused(capsys, flow.task, *goal, *out, "--examples", "20000")
    assert (code, "is a probe of 40,000 examples, and 20,000 examples are asked for: give another" in line) == (1, True)
    for asked, words in (("50epochs", "30,000 examples"), ("60s", "60 s")):
        code, line = refused(capsys, flow.task, *goal, *out, "--usual-run", asked)
        assert (code, f"is a probe of 40,000 examples, and {words} are asked for" in line) == (1, True)
    code, line = refused(capsys, flow.task, *goal, *out, "--examples", "40000", "--usual-run", "9epochs")
    assert (code, "--usual-run stands for a budget" in line) == (2, True)
    assert "is a probe with seed 0, and 3 is asked for" in refused(capsys, flow.task, *goal, *out, "--seed", "3")[1]
    other = tmp_path / "other.py"
    other.write_text(Path(flow.task.rpartition(":")[0]).read_text().replace("nn.Linear(12, 4)", "nn.Linear(12, 5)"))
    line = refused(capsys, f"{other}:task", *goal, *out)[1]
    assert "is the probe of another task (it was of 52 trainable parameters, and this task has 65)" in line
    assert refused(capsys, flow.task, "--goal", "within=2h", "--least", "steps", *out)[0] == 2
    assert refused(capsys, flow.task, *goal, *out, "--log", "wandb") == (
        2,
        "batchopt: error: --log is of the training: give --train with it, or log with `batchopt train --log`",
    )


def test_a_goal_that_is_none_lists_what_there_is(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, flow.task, "--goal", "accuracy=0.93")
    assert code == 2
    assert "there is no goal 'accuracy'; there is loss=0.25" in line
    assert "within=2h" in line
    assert "the task has no metrics" in line
    with pytest.raises(SystemExit, match="2"):
        main(["run", flow.task, "--goal", "accuracy"])
    assert "a goal is NAME=VALUE, got 'accuracy'" in capsys.readouterr().err


@pytest.mark.parametrize("further", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ("accuracy=93", "accuracy must lie between 0 and 1, since it is 0 or 1 for each of the 200 examples that are "
                        "evaluated, got 93: ask for 0.93"),
        ("loss=25", "the loss before any training, got 25: ask for less"),
    ],
)  # fmt: skip
def test_a_goal_that_makes_no_sense_is_refused_before_the_probe(
    with_accuracy: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    goal: str,
    said: str,
    further: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    code, line = refused(capsys, with_accuracy, "--goal", goal, "--usual-run", "25epochs", "-o", str(out), *further)
    assert (code, said in line) == (1, True)
    assert not out.exists()


def test_tensors_with_nan_are_refused_before_a_dry_run_too(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(Path(flow.task.rpartition(":")[0]).read_text() + "x[555, 3] = float('nan')\n")
    command = (f"{tmp_path / 'bad.py'}:task", "--goal", "loss=0.5", "--usual-run", "25epochs", "--dry-run")
    code, line = refused(capsys, *command, "-o", str(tmp_path / "out"))
    assert (code, "data[555] holds NaN or infinite values that make theirs nan" in line) == (1, True)


def test_a_goal_out_of_reach_keeps_the_probe(flow: Any, capsys: pytest.CaptureFixture[str], probed: Path) -> None:
    code, line = refused(capsys, flow.task, "--goal", "loss=1e-9", "-o", str(probed))
    lowest = Forecast.load(flow.forecast).lowest_observed_loss
    assert code == 1
    assert f"(the lowest loss of the probe was {lowest:.4g}); the probe is kept in" in line
    assert (probed / "probe.json").exists()
    assert not (probed / "plan.json").exists()
