"""Each command on the files of the one before."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TASK

from batchopt import Forecast, LearningRateSchedule, LowestLoss, Plan, ProbeReport, Schedule, Segment
from batchopt.cli.console import Console
from batchopt.cli.main import main
from batchopt.cli.plan import show_plan
from batchopt.cli.probe import show_probe
from batchopt.cli.task_file import load_task
from batchopt.cli.training import train_by
from batchopt.report.sections import probe as probe_section
from batchopt.step_cost import Knee, StepCost

GOAL = 0.4


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one JSON object that a command prints on standard output."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert isinstance(content, dict)
    return content


def test_the_probe_keeps_its_budget_and_leaves_no_journal(flow: Any) -> None:
    report = ProbeReport.load(flow.probe)
    assert report.examples_spent <= report.budget_examples == 40_000
    assert len(report.noise_scales) == 3
    assert not Path(f"{flow.probe}.partial").exists()


def test_what_a_probe_spent_and_found_out_is_shown(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    note = "The learning rate that was given is far from the best."
    report = replace(ProbeReport.load(flow.probe), notes=(note,))
    dear = replace(report, spending=tuple(replace(part, counted=2.0 * part.examples) for part in report.spending))
    capsys.readouterr()
    for each, of in ((report, "it"), (dear, "the budget")):
        show_probe(each, Console(as_json=False))
        shown = capsys.readouterr().out
        assert note in shown
        share = f"{each.budget_spent / each.budget_examples:.0%} of {of} spent"
        assert f"{share}: {each.examples_spent:,.0f} examples" in shown
    assert dear.budget_spent == pytest.approx(2.0 * report.examples_spent)
    assert note in probe_section(report, None).body


def test_runs_and_their_cooldowns_are_shown_apart(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report = ProbeReport.load(flow.probe)
    show_probe(report, Console(as_json=False))
    tables = re.split(r"\n\n", capsys.readouterr().out)
    (runs,) = (table for table in tables if table.startswith("runs\n"))
    (cooldowns,) = (table for table in tables if table.startswith("cooldowns: off the end of a run,"))
    falls = [run.falls for run in report.runs if run.falls is not None]
    assert len(runs.splitlines()) == 3 + len(report.runs) - len(falls)
    shown = [re.split(r"  +", line.strip())[2:4] for line in cooldowns.splitlines()[3:]]
    assert shown == [[f"{begin:,}", f"{end:,}"] for begin, end in falls]
    assert shown


def test_the_tables_say_what_the_files_say(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", flow.forecast, "--reach-loss", str(GOAL), "--least", "steps", "-o", str(tmp_path / "p"),
                 "--schedule", str(tmp_path / "s")]) == 0  # fmt: skip
    text = capsys.readouterr().out
    plan = Plan.load(tmp_path / "p")
    goal, first = text.splitlines()[:2]
    assert goal == f"Plan for a loss of {GOAL} in the fewest steps"
    assert first.startswith(f"batch size {plan.batch_size}, peak learning rate {plan.learning_rate:.3g} (")
    assert plan.reasons[0].split(".")[0] in " ".join(text.split())
    assert Schedule.load(tmp_path / "s") == plan.schedule


def test_forecast_at_a_loss_that_is_asked_for(flow: Any) -> None:
    asked = [row["estimate"] for row in flow.told["critical_batch_size"] if row["loss"] == 0.45]
    assert asked[0]["value"] == Forecast.load(flow.forecast).critical_batch_size(0.45).value


def test_what_is_said_of_a_step_are_the_planner_s_numbers(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report = ProbeReport.load(flow.probe)
    bent = StepCost(2.52e-3, 1e-6, knees=(Knee(16, 2.9e-4),))
    for cost in (report.step_cost, bent):
        show_probe(replace(report, step_cost=cost), Console(as_json=False))
        shown = capsys.readouterr().out
        assert f"a step takes {cost.in_words()}" in shown
        assert cost.in_words() in probe_section(replace(report, step_cost=cost), None).body
    assert bent.in_words() == "2.52 ms at a batch of 1 and 2.54 ms at 16; beyond, every further example takes 291 µs"
    assert bent(17) - bent(16) == pytest.approx(291e-6, rel=1e-6)


def test_a_plan_says_what_it_costs_and_how_sure_it_is_before_why(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.load(flow.plan)
    doubt = "The loss at the end of the schedule is unresolved: 0.5."
    for doubts in ((), (doubt,)):
        reasons = (*doubts, *plan.reasons[len(plan.doubts) :])
        show_plan(replace(plan, reasons=reasons), Console(as_json=False))
        text = capsys.readouterr().out
        places = [text.index(f"\n{words}") for words in ("what it costs", "how sure", "why", "what other batch sizes")]
        assert places == sorted(places)
        sure = text[places[1] : places[2]]
        assert ("Nothing in the evidence speaks against the plan" in sure) == (not doubts)
        assert (doubt in sure) == bool(doubts)
        assert "on average over what the forecast leaves open" in " ".join(sure.split())
        assert reasons[len(doubts)].split(",")[0] in text[places[2] : places[3]]


def test_a_price_of_ones_own(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = [flow.forecast, "--reach-loss", str(GOAL), "--learning-rate-schedule", "wsd"]
    common += ["-o", str(tmp_path / "p"), "--schedule", str(tmp_path / "s")]
    dear_steps = run_json(capsys, "plan", *common, "--per-step", "1000", "--per-example", "1")
    dear_examples = run_json(capsys, "plan", *common, "--per-step", "1", "--per-example", "1")
    assert dear_steps["batch_size"] > dear_examples["batch_size"]


@pytest.mark.usefixtures("few_reports")
def test_lowest_loss_within_a_budget(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan, schedule = str(tmp_path / "p"), str(tmp_path / "s")
    run_json(capsys, "plan", flow.forecast, "--within", "4000", "--of", "examples", "--multiple-of", "4",
             "--batch-sizes", "4:64", "--learning-rate-schedule", "wsd",
             "-o", plan, "--schedule", schedule)  # fmt: skip
    assert Plan.load(plan).goal == LowestLoss(4000, of="examples")
    assert 4 <= Plan.load(plan).batch_size <= 64
    assert Plan.load(plan).batch_size % 4 == 0
    trained = run_json(capsys, "train", flow.task, schedule, "--plan", plan)
    assert [row["name"] for row in trained["compared"]] == ["loss"]
    study = str(tmp_path / "study.db")
    tuned = run_json(
        capsys, "tune", flow.task, flow.forecast, "--plan", plan, "--study", study, "--trials", "3", "--try", "8:0.3"
    )
    assert tuned["best"]["cost"] < 1.0


def test_training_is_compared_with_the_plan(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    adapted = ("--plan", flow.plan, "--adapt", flow.forecast)
    found = run_json(capsys, "train", flow.task, flow.schedule, *adapted, "--save", str(weights))
    compared = {row["name"]: row for row in found["compared"]}
    plan = Plan.load(flow.plan)
    of_schedule = plan.schedule.steps * plan.batch_size / plan.horizon  # 1, unless the batch size rises
    assert compared["steps"]["predicted"]["value"] == pytest.approx(of_schedule * plan.steps.value)
    assert compared["examples"]["measured"] >= found["reached_at_examples"], "decays that missed are counted"
    assert set(torch.load(weights)) == {"weight", "bias"}


def test_the_crossing_and_what_was_trained_are_told_apart(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", flow.task, flow.schedule, "--plan", flow.plan, "--adapt", flow.forecast]
    found = run_json(capsys, *command)
    assert main(command) == 0
    reached, examples = round(found["reached_at_examples"]), found["examples"]
    assert reached <= examples
    text = " ".join(capsys.readouterr().out.split())
    assert f"reached after {reached:,} examples, which is what is compared; the run ended at {examples:,}," in text


def test_training_without_a_plan_goes_to_the_schedules_end(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Schedule.constant(50, examples=2_000).save(tmp_path / "s.json")
    found = run_json(capsys, "train", flow.task, str(tmp_path / "s.json"), "--learning-rate", "0.2")
    assert (found["steps"], found["examples"], found["compared"]) == (40, 2_000, [])


def test_training_says_what_a_checkpoint_held_already(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", flow.task, flow.schedule, "--checkpoint", str(tmp_path / "run"), "--metrics"]
    with monkeypatch.context() as patched:
        patched.setattr(Console, "progress", stop_at(0.3))
        assert main([*command, str(tmp_path / "before")]) == 130
    seen = [json.loads(line)["examples"] for line in (tmp_path / "before").read_text().splitlines()][-1]
    for said in (f"went on from the {seen:,} examples of", "was finished already; nothing was trained"):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "after")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert said in lines[0]
        assert lines[1].startswith("in all ")
    assert run_json(capsys, *command, str(tmp_path / "after"))["resumed_at_examples"] > seen


def stop_at(share: float) -> Any:
    def progress(self: Console, part: str, done: float | None) -> None:
        if done is not None and done >= share:
            raise KeyboardInterrupt

    return progress


@pytest.mark.usefixtures("few_points", "few_reports")
def test_a_study_goes_on_to_its_number_of_trials(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = str(tmp_path / "study.db")
    command = ("tune", flow.task, flow.forecast, "--plan", flow.plan, "--study", study, "--try", "1:0.0001")
    first = run_json(capsys, *command, "--trials", "2")
    assert first["trials"] == 2
    assert first["pruned_before_compute"] >= 1, "a hopeless setting of habit costs no compute"
    assert run_json(capsys, *command, "--trials", "3")["trials"] == 3
    assert main([*command, "--trials", "3"]) == 0
    text = capsys.readouterr().out
    assert "3 proposed" in text
    assert text.count("pruned before compute") >= 2, "in the row of the trial, and in the count"
    explained = run_json(capsys, "explain", study)["trials"]
    assert any("3 trials" in line for line in explained)
    few, every = (run_json(capsys, "explain", study, *which)["trials"] for which in (("--last", "1"), ("--all",)))
    assert any("the last 1 of" in line for line in few)
    assert sum(line.startswith("Trial ") for line in few) < sum(line.startswith("Trial ") for line in every)
    assert main(["report", "--plan", flow.plan, "--study", study, "-o", str(tmp_path / "report.html")]) == 0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_schedule_shown_exported_and_its_schema(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Schedule.constant(64, examples=6_400, learning_rate=0.1).save(tmp_path / "s.json")
    shown = run_json(capsys, "schedule", str(tmp_path / "s.json"))
    assert shown["steps"] == 100
    exported = run_json(capsys, "schedule", str(tmp_path / "s.json"), "--to", "megatron", "--tokens-per-example",
                        "128", "--micro-batch", "8", "--data-parallel", "2")  # fmt: skip
    assert '--step-batch-size-schedule "0:64"' in exported["text"]
    assert run_json(capsys, "schedule", "--schema")["properties"]["schema"]["const"] == Schedule.SCHEMA


@pytest.mark.parametrize(
    ("shape", "warmup", "told"),
    [
        (None, 0, "warm-up and decay left to the task or your loop"),
        ("constant", 0, "the learning rate stays\n"),
        ("constant", 640, "the learning rate rises over 640 examples, then stays\n"),
        ("linear", 0, "the learning rate falls linearly to zero at 6,400\n"),
        ("cosine", 640, "rises over 640 examples, then falls as a cosine to zero at 6,400\n"),
        ("wsd", 640, "then stays, and falls linearly to zero over the 1,280 before 6,400\n"),
        (lambda progress: 1.0 - 0.5 * progress, 0, "the learning rate follows 257 points of learning_rate_schedule"),
    ],
)
def test_warm_up_and_decay_are_told_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shape: Any, warmup: int, told: str
) -> None:
    rates = None
    if shape is not None:
        rates = LearningRateSchedule.of(shape, examples=6_400, warmup_examples=warmup)
    schedule = Schedule.constant(64, examples=6_400, learning_rate_schedule=rates)
    schedule.save(tmp_path / "s.json")
    assert main(["schedule", str(tmp_path / "s.json")]) == 0
    assert told in capsys.readouterr().out


def test_a_file_of_the_first_version_is_shown_and_written_as_of_now(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(
        '{"schema": "batchopt.schedule/1", "segments": [{"start_examples": 0, "batch_size": 64}], "examples": 640}'
    )
    assert run_json(capsys, "schedule", str(old), "-o", str(new))["schema"] == "batchopt.schedule/2"
    assert Schedule.load(new) == Schedule.constant(64, examples=640)


@pytest.mark.parametrize(("shape", "times"), [("linear", 1.0), ("constant", 3.0)])
def test_a_run_to_a_plans_loss_goes_on_while_something_is_learned(flow: Any, shape: Any, times: float) -> None:
    plan, task = Plan.load(flow.plan), load_task(flow.task)
    rates = LearningRateSchedule.of(shape, examples=plan.schedule.examples)
    schedule = replace(plan.schedule, learning_rate_schedule=rates)
    unreachable = replace(plan, goal=replace(plan.goal, loss=1e-6))
    result = train_by(task, schedule, Console(as_json=True), plan=unreachable)
    assert result.examples == round(times * plan.schedule.examples)
    assert result.schedule.learning_rate_schedule == rates


def test_a_plan_stands_for_its_schedule(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_json(capsys, "schedule", flow.plan) == run_json(capsys, "schedule", flow.schedule)
    by_plan, by_schedule = (run_json(capsys, "train", flow.task, file) for file in (flow.plan, flow.schedule))
    assert by_plan["loss"] == by_schedule["loss"]
    assert main(["report", "--schedule", flow.plan, "-o", str(tmp_path / "report.html")]) == 0


def test_an_export_is_written_and_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schedule = Schedule((Segment(0, 64), Segment(6_400, 128)), examples=19_200)
    schedule.save(tmp_path / "s.json")
    for to, options in (
        ("megatron", ["--tokens-per-example", "128", "--micro-batch", "8", "--data-parallel", "2"]),
        ("levanter", ["--data-parallel", "2"]),
    ):
        exported = run_json(
            capsys, "schedule", str(tmp_path / "s.json"), "--to", to, *options, "-o", str(tmp_path / "export")
        )
        text = (tmp_path / "export").read_text()
        assert text.startswith(exported["text"].rstrip())
        assert all(f"# {note}" in text for note in exported["notes"])
        again = ["schedule", str(tmp_path / "export"), "--from", to, "-o", str(tmp_path / "again.json")]
        assert run_json(capsys, *again)["steps"] == schedule.steps
        assert Schedule.load(tmp_path / "again.json").segments == schedule.segments


def test_training_in_parts_leaves_its_metrics(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    told = []
    for parts in ([], ["--micro-batch", "3"]):
        assert main(["train", flow.task, flow.schedule, "--metrics", str(metrics), "--json", *parts]) == 0
        told.append([json.loads(line)["loss"] for line in metrics.read_text().splitlines()])
    assert len(told[0]) > 1
    assert told[1] == pytest.approx(told[0], rel=1e-4)


def test_a_schedule_is_corrected_and_what_was_done_is_kept(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    realised, board = tmp_path / "realised.json", tmp_path / "board"
    command = ["train", flow.task, flow.schedule, "--plan", flow.plan, "--adapt", flow.forecast]
    assert main([*command, "--realised", str(realised), "--log", f"tensorboard:{board}"]) == 0
    told = capsys.readouterr().out
    begins = Plan.load(flow.plan).schedule.learning_rate_schedule.examples[-2]
    assert f"by the plan it falls from {begins:,}" in told
    assert Schedule.load(realised).segments[0] == Plan.load(flow.plan).schedule.segments[0]
    assert list(board.iterdir())
    for wrong in (
        ["train", flow.task, flow.schedule, "--adapt", flow.forecast],
        ["train", flow.task, flow.schedule, "--plan", flow.plan, "--realised", str(realised)],
    ):
        assert main(wrong) == 2
        assert "--adapt" in capsys.readouterr().err


def test_another_schedule_or_rate_is_not_compared_with_the_plan(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan, own = Plan.load(flow.plan), tmp_path / "own.json"
    Schedule.constant(plan.batch_size, examples=7 * plan.schedule.examples, learning_rate=plan.learning_rate).save(own)
    other = str(0.99 * plan.learning_rate)
    for command in ([str(own)], [flow.schedule, "--learning-rate", other]):
        assert main(["train", flow.task, *command, "--plan", flow.plan]) in (0, 1), "one of ten misses the loss"
        told = capsys.readouterr().out
        assert "nothing is compared" in told
        assert "predicted" not in told


def test_progress_and_words_leave_standard_output_to_json(flow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", flow.task, flow.schedule, "--plan", flow.plan, "--adapt", flow.forecast, "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "training" in captured.err
    assert "predicted" in captured.err


def test_a_forecast_and_a_plan_say_that_they_begin(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["forecast", flow.probe, "-o", str(tmp_path / "f.json")]) == 0
    assert capsys.readouterr().err == "  fitting the forecast\n"
    out = ["-o", str(tmp_path / "plan.json"), "--schedule", str(tmp_path / "schedule.json")]
    assert main(["plan", flow.forecast, "--reach-loss", str(GOAL), *out]) == 0
    assert capsys.readouterr().err == "  planning\n"


def test_what_lies_beside_a_task_is_found_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "layers_of_test.py").write_text("import torch\n\nmake = lambda: torch.nn.Linear(12, 4)\n")
    source = TASK.replace("lambda: nn.Linear(12, 4)", "make_model")
    lazily = "def make_model():\n    from layers_of_test import make\n\n    return make()\n"
    (tmp_path / "task_of_test.py").write_text(lazily + textwrap.dedent(source))
    task = load_task(f"{tmp_path / 'task_of_test.py'}:task")
    assert isinstance(task.make_model(), torch.nn.Linear)
    assert str(tmp_path) not in sys.path[:1], "it does not come before what is installed"
