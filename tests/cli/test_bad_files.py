"""Files that hold something else, do not belong together, or take the place of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.test_bad_usage import fails

from batchopt.cli.main import main


def test_wrong_files(flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(flow.probe).read_text()
    broken = tmp_path / "broken.json"
    out = ("-o", str(tmp_path / "out.json"))
    for content, said in (
        (text[: len(text) // 2], "cut off"),
        (text.replace("batchopt.probe/3", "batchopt.probe/9"), "newer batchopt"),
        (text.replace("batchopt.probe/3", "batchopt.probe/1"), "older batchopt"),
        ("[1, 2]", "schema"),
        ("", "not valid JSON"),
    ):
        broken.write_text(content)
        assert said in fails(capsys, "forecast", str(broken), *out)
    assert "expected batchopt.probe/3" in fails(capsys, "forecast", flow.plan, *out)
    assert "expected batchopt.schedule/2" in fails(capsys, "schedule", flow.probe)
    broken.write_text(Path(flow.plan).read_text().replace("batchopt.plan/4", "batchopt.plan/9"))
    assert "newer batchopt (batchopt.plan/9" in fails(capsys, "schedule", str(broken))
    assert "No such file" in fails(capsys, "forecast", str(tmp_path / "missing.json"), *out)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("levanter", "a: [1, 2", "must be YAML"),
        ("levanter", "- 1", "must have a section `trainer`"),
        ("levanter", "trainer:\n  x: 1", "lacks ['train_batch_size', 'num_train_steps']"),
        ("levanter", "trainer:\n  train_batch_size: abc\n  num_train_steps: 9", "or a list of {start: step, value"),
        ("megatron", "hello", "must have --step-batch-size-schedule"),
        ("megatron", None, "cannot be read: No such file"),
    ],
)
def test_configurations_that_hold_no_schedule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str, text: str | None, message: str
) -> None:
    file = tmp_path / "configuration"
    if text is not None:
        file.write_text(text)
    line = fails(capsys, "schedule", str(file), "--from", source)
    assert message in line
    assert str(file) in line


def test_no_file_of_a_command_takes_the_place_of_another(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train, same = ["train", flow.task, flow.schedule], str(tmp_path / "same")
    for wrong in (
        ["--metrics", flow.schedule],
        ["--plan", flow.plan, "--save", flow.plan],
        ["--checkpoint", same, "--save", same],
    ):
        assert main([*train, *wrong]) == 2
        assert "is named twice" in capsys.readouterr().err
    assert main([*train, "--save", str(tmp_path)]) == 1
    assert "is a folder: give the name of a file in it" in capsys.readouterr().err
    assert main(["probe", flow.task, "--examples", "9000", "-o", str(tmp_path)]) == 1
    assert "is a folder: give the name of a file in it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_of_files_that_do_not_belong_together(
    flow: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = json.loads(Path(flow.probe).read_text())
    other["initial_loss"] *= 1.5
    (tmp_path / "other.json").write_text(json.dumps(other))
    out = ("-o", str(tmp_path / "report.html"))
    told = fails(capsys, "report", "--probe", str(tmp_path / "other.json"), "--forecast", flow.forecast, *out)
    assert "a forecast and a probe must belong together, and the initial loss" in told
    forecast = json.loads(Path(flow.forecast).read_text())
    forecast["law"]["rows"] = [[1.01 * x for x in row] for row in forecast["law"]["rows"]]
    (tmp_path / "forecast.json").write_text(json.dumps(forecast))
    told = fails(capsys, "report", "--forecast", str(tmp_path / "forecast.json"), "--plan", flow.plan, *out)
    assert "a plan and a forecast must belong together" in told
    assert not (tmp_path / "report.html").exists()
    assert main(["report", "--probe", flow.probe, "--forecast", flow.forecast, "--plan", flow.plan, *out]) == 0
