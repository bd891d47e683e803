"""Runs in CSV files, long and as exported charts."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchopt.errors import EvidenceError
from batchopt.runs.csv_files import csv_rows

CHART = """"Step","a - val/loss","a - val/loss__MIN","a - val/loss__MAX","b - 2 - val/loss","b - 2 - step"
"0","2.3","2.3","2.3","2.31","0"
"100","1.1","1.1","1.1","",""
"""


def written(folder: Path, text: str, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_rows_by_their_header(tmp_path: Path, between: str, ends: str) -> None:
    lines = [["run", "step", "loss"], ["a", "0", "2.3"], ["a", "1", ""], []]
    text = ends.join(between.join(line) for line in lines)
    expected = [{"run": "a", "step": "0", "loss": "2.3"}, {"run": "a", "step": "1", "loss": ""}]
    assert csv_rows(written(tmp_path, text)) == expected
    assert csv_rows(written(tmp_path, "\ufeff" + text)) == expected


def test_a_chart_has_a_column_for_each_run(tmp_path: Path) -> None:
    path = written(tmp_path, CHART)
    with pytest.raises(EvidenceError, match="'Step' of Weights & Biases counts calls of its log"):
        csv_rows(path)
    assert csv_rows(path, ["Step"]) == [
        {"run": "a", "Step": "0", "val/loss": "2.3"},
        {"run": "b - 2", "Step": "0", "val/loss": "2.31"},
        {"run": "a", "Step": "100", "val/loss": "1.1"},
    ]


def test_a_chart_is_of_losses_and_a_table_with_a_loss_of_its_own_is_none(tmp_path: Path) -> None:
    table = written(tmp_path, "step,loss,ImageNet - top 1\n0,2.3,0.1\n")
    assert csv_rows(table) == [{"step": "0", "loss": "2.3", "ImageNet - top 1": "0.1"}]
    chart = written(tmp_path, "global_step,a - ce,a - steps_per_second,a - step\n0,2.3,5,0\n")
    assert set(csv_rows(chart)[0]) == {"global_step", "a - ce", "a - steps_per_second", "a - step"}
    assert csv_rows(chart, ["ce"]) == [{"run": "a", "global_step": "0", "ce": "2.3", "steps_per_second": "5"}]


def test_a_cell_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="line 2 cannot be read as CSV: field larger than field limit"):
        csv_rows(written(tmp_path, f"step,loss\n0,{'1' * 200_000}\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the first line must name the columns"),
        ("loss,step,loss\n1,2,3\n", r"each once, got \['loss'\]"),
        ("run,loss\na,1\na,1,2\n", "line 3 has 3 cells, and the first line names 2"),
        ("run,loss\na\na,1", "line 2 has 1 cells, and the first line names 2"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        csv_rows(written(tmp_path, text))


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    assert csv_rows(written(tmp_path, "run,step,loss\na,0,1\na,1")) == [{"run": "a", "step": "0", "loss": "1"}]


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(EvidenceError, match="it is not UTF-8 text"):
        csv_rows(path)
