"""The benchmark on Step Law's table: what it reads, a schedule of a run, and what a choice costs. Needs no data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import steplaw

HEAD = "h,ffnh,numh,numl,lr,bs,ti,loss,smooth loss,exp_name,D,N,D/N\n"


def made_tables(rng: np.random.Generator) -> dict[float, list[steplaw.Cell]]:
    """Losses with a best setting that moves with the tokens, as a formula."""
    tables = {}
    for tokens in (4e9, 1e10, 4e10):
        cells = []
        for size in (32.0, 128.0, 512.0, 2048.0):
            steps = tokens / size / steplaw.SEQUENCE
            for rate in 2.0 ** np.arange(-11.0, -6.0):
                off = math.log(rate / (0.002 * (size / 128.0) ** 0.33))
                loss = 2.0 + 0.6 * (size / 128.0) ** -0.1 * 0.5 + 3.0 * (steps / 100.0) ** -0.4 + 0.01 * off**2
                cells.append(steplaw.Cell(size, rate, steps, loss * math.exp(1e-3 * rng.standard_normal())))
        tables[tokens] = cells
    return tables


def test_it_reads_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEAD + "960,9368,15,7,0.0003453,736,66342,2.4135,2.3976,name,100000000000,214663680,465.8\n")
    assert steplaw.read(path) == {214663680.0: {1e11: [steplaw.Cell(736.0, 0.0003453, 66342.0, 2.3976)]}}


def test_a_course_warms_up_and_ends_at_the_last_rate() -> None:
    run = steplaw.course_of(steplaw.Cell(128.0, 4e-3, 40_000.0, 2.5))
    assert run.steps.sum() == pytest.approx(40_000.0)
    ends = np.cumsum(run.steps)
    assert ends == pytest.approx(np.unique(ends))
    warm = ends <= steplaw.WARMUP_STEPS + 1e-6
    assert np.sum((run.steps * run.learning_rates)[warm]) == pytest.approx(0.5 * 4e-3 * steplaw.WARMUP_STEPS)
    mean = 0.5 * (4e-3 + steplaw.LAST_RATE)  # of a cosine, over its whole length
    assert np.sum((run.steps * run.learning_rates)[~warm]) == pytest.approx(mean * 38_000.0, rel=0.01)
    assert run.learning_rates[-1] < 0.05 * 4e-3


def test_a_choice_costs_its_loss_over_the_best() -> None:
    cells = [steplaw.Cell(64.0, 1e-3, 100.0, 2.2), steplaw.Cell(128.0, 4e-3, 50.0, 2.0)]
    found = steplaw.outcome(cells[0], cells)
    assert found["regret"] == pytest.approx(0.1)
    assert (found["batch_octaves"], found["rate_octaves"]) == (-1.0, -2.0)


def test_step_laws_formula_takes_the_nearest_setting() -> None:
    cells = [steplaw.Cell(size, rate, 1.0, 1.0) for size in (64.0, 256.0, 1024.0) for rate in (1e-3, 2e-3, 4e-3)]
    chosen = steplaw.step_law_choice(214663680.0, 2e10, cells)  # 216 sequences, 0.0030
    assert (chosen.batch_size, chosen.learning_rate) == (256.0, 4e-3)


def test_rows_are_of_the_tokens_that_were_not_fitted() -> None:
    rows = steplaw.rows_of(2e8, made_tables(np.random.default_rng(0)))
    assert [row["tokens"] for row in rows] == [4e10]
    assert rows[0]["fitted_tokens"] == [4e9, 1e10]
    assert all(0.0 <= rows[0][law]["regret"] < 0.05 for law in steplaw.CHOICES)
    found = steplaw.summary(rows)["schedule_law"]
    assert found["mean_regret"] == found["worst_regret"] == rows[0]["schedule_law"]["regret"]


def test_it_is_skipped_without_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["steplaw", "--output", str(tmp_path / "found.json")])
    steplaw.main()
    assert "skipped: no" in capsys.readouterr().out
    assert not (tmp_path / "found.json").exists()
