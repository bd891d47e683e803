"""One function for all kinds of logs."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest

from batchopt.errors import EvidenceError
from batchopt.runs.read import kind_of, read_runs, without_secrets

ROWS = [
    {"run": run, "batch_size": size, "lr": 0.1, "step": step, "loss": loss}
    for run, size in (("a", 8), ("b", 16))
    for step, loss in ((0, 2.3), (10, 1.5), (20, 1.1), (50, 0.8))
]
CHART = "Step,a - val_loss,b - val_loss\n0,2.3,2.3\n10,1.5,1.5\n20,1.1,1.1\n50,0.8,0.8\n"


def as_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_all_kinds_of_tables_say_the_same(tmp_path: Path) -> None:
    runs = read_runs(as_csv(tmp_path / "runs.csv", ROWS))
    assert [run.batch_size for run in runs] == [8, 16]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "runs.json").write_text(json.dumps(ROWS))
    (tmp_path / "chart.csv").write_text(CHART)
    assert read_runs(str(tmp_path / "runs.jsonl")) == runs
    assert read_runs(tmp_path / "runs.json") == runs
    table = as_csv(tmp_path / "table.csv", [{"Name": "a", "bs": 8, "lr": 0.1}, {"Name": "b", "bs": 16, "lr": 0.1}])
    by_step = {"steps": "Step"}
    assert read_runs(tmp_path / "chart.csv", columns=by_step, settings=table) == runs
    settings = {"a": {"batch_size": 8, "learning_rate": 0.1}, "b": {"batch_size": 16, "learning_rate": 0.1}}
    assert read_runs(tmp_path / "chart.csv", columns=by_step, settings=settings) == runs


def test_a_log_of_one_run_is_named_by_its_file(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name not in ("run", "batch_size")} for row in ROWS[:4]]
    path = as_csv(tmp_path / "night.csv", rows)
    with pytest.raises(EvidenceError, match=r"night.csv: run 'night': it has no batch_size"):
        read_runs(path)
    assert read_runs(path, settings={"night": {"batch_size": 8}})[0].batch_size == 8


def test_what_a_training_of_ours_logs_is_read(tmp_path: Path) -> None:
    keys = ("examples", "steps", "batch_size", "learning_rate", "training_loss", "loss")
    lines = [dict(zip(keys, (8 * n, n, 8, 0.1, 1.0 + 1 / n, 1.1 + 1 / n), strict=True)) for n in (1, 10, 20, 50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run,) = read_runs(tmp_path / "metrics.jsonl")
    assert run.curve.examples[-1] == 400
    assert run.training is not None


def test_nothing_that_is_read_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    for name in ("runs.csv", "runs.jsonl", "runs.json", "study.db", "events.out.tfevents.1"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(EvidenceError):
            read_runs(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.csv", "missing.csv: there is no such file or folder"),
        ("runs.pkl", r"runs.pkl: a log of runs must be a file that ends in .csv, .* write it as CSV"),
        ("empty", "empty: a log of runs must be a file"),
    ],
)
def test_what_is_no_log(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "runs.pkl").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvidenceError, match=said):
        read_runs(tmp_path / name)


def test_tables_of_settings(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "runs.csv", ROWS)
    with pytest.raises(EvidenceError, match="settings must be in a CSV or JSON file with a row for each run, got"):
        read_runs(path, settings=tmp_path / "settings.yaml")
    unnamed = as_csv(tmp_path / "settings.csv", [{"batch_size": 8}])
    with pytest.raises(EvidenceError, match=r"settings.csv must name the run of each row in a column 'run'"):
        read_runs(path, settings=unnamed)
    (tmp_path / "settings.csv").write_text("Name,bs,lr\na,8,0.1\nb,16,0.1\na,,0.2\n")
    with pytest.raises(
        EvidenceError, match=r"must hold one learning_rate for each run, got '0.1' and '0.2' for run 'a'"
    ):
        read_runs(path, settings=tmp_path / "settings.csv")
    (tmp_path / "settings.csv").write_text("Name,bs,lr\na,8,0.1\n,16,0.1\n")
    with pytest.raises(EvidenceError, match="must name the run of each row"):
        read_runs(path, settings=tmp_path / "settings.csv")
    (tmp_path / "settings.csv").write_text("Name,bs,lr,loss,train_loss,val_loss,_step\na,8,,1,1,1,9\na,,0.3,1,1,1,9\n")
    assert read_runs(path, settings=tmp_path / "settings.csv")[0].learning_rate == 0.3


def test_kinds_of_files(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    texts = {"a.json": "\ufeff" + lines, "b.JSON": json.dumps(ROWS), "c.json": '{"schema": "batchopt.plan/1"}'}
    texts |= {"d.json": "{\n", "e.CSV": CHART, "f.DB": "", "g": '{"schema": "batchopt.probe_report/1"}', "h": "notes"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    kinds = ["json", "json", "record", "record", "csv", "study", "record", "other"]
    assert [kind_of(tmp_path / name) for name in texts] == kinds
    assert kind_of(tmp_path / "none.csv") == "missing"
    assert read_runs(tmp_path / "a.json") == read_runs(tmp_path / "b.JSON")
    with pytest.raises(EvidenceError, match=r"c.json: it is a record of batchopt, no log of runs"):
        read_runs(tmp_path / "c.json")


def test_nobody_is_told_a_password() -> None:
    assert without_secrets("mysql://me:p@ss/w@host/db?password=x") == "mysql://...@host/db"
    assert without_secrets("runs?.csv") == "runs?.csv"
    for place in ("mysql+nosuch://me:secret@host/db", "nothing://me:secret@host", "://me:secret@host"):
        with pytest.raises(EvidenceError, match="it cannot be opened as an Optuna storage") as caught:
            read_runs(place, columns={"examples": "step"})
        assert "secret" not in str(caught.value)
