"""The coverage benchmark: its judgement, and that what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import interval_coverage
import numpy as np
import pytest
from interval_coverage import Cell, repeat, run, summary, target
from populations import isotropic


def row(**changes: Any) -> dict[str, Any]:
    good = {"noise_scale": 64.0, "examples": 256.0, "covered": 0.9, "resolved": 1.0, "width_ratio": 1.0}
    return good | changes


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, ""),
        ({"covered": 0.85}, "coverage"),
        ({"covered": 0.97}, "coverage"),
        ({"covered": 0.81, "examples": 255.0}, ""),
        ({"covered": 0.79, "examples": 255.0}, "coverage"),
        ({"width_ratio": 1.2}, "width"),
        ({"noise_scale": None, "resolved": 0.05}, ""),
        ({"noise_scale": None, "resolved": 0.08}, "resolved"),
        ({"noise_scale": None, "resolved": 0.01}, "resolved"),
    ],
)
def test_targets(changes: dict[str, Any], missed: str) -> None:
    assert target(row(**changes)) == missed


def test_names_tell_cells_apart() -> None:
    names = [cell.name for cell in interval_coverage.cells()]
    assert len(set(names)) == len(names)


def test_one_cell() -> None:
    cell = Cell(isotropic(64), 256)
    result = summary(cell, [repeat(cell, np.random.default_rng(k)) for k in range(100)])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["examples"] == 256
    assert result["resolved"] == 1.0
    assert 0.8 <= result["covered"] <= 1.0
    assert 0.8 <= result["width_ratio"] <= 1.2


def test_an_adaptive_cell_stops_by_itself() -> None:
    repetition = repeat(Cell(isotropic(64), 50_000, relative_width=0.5), np.random.default_rng(0))
    assert repetition.narrow
    assert repetition.examples < 1_000


def test_few_groups_are_few() -> None:
    assert Cell(isotropic(64), 640).few_groups is False
    cells = [cell for cell in interval_coverage.cells() if cell.few_groups]
    assert len(cells) == 15


def test_done_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cells = tmp_path / "result.json", [Cell(isotropic(8), 32), Cell(isotropic(8), 64)]
    monkeypatch.setattr(interval_coverage, "cells", lambda: iter(cells[:1]))
    first = run(path, repetitions=30)
    monkeypatch.setattr(interval_coverage, "cells", lambda: iter(cells))
    done: list[str] = []

    def counting(cell: Cell, rng: np.random.Generator) -> Any:
        done.append(cell.name)
        return repeat(cell, rng)

    monkeypatch.setattr(interval_coverage, "repeat", counting)
    second = run(path, repetitions=30)
    assert second[0] == first[0]
    assert set(done) == {cells[1].name}
    monkeypatch.setattr(interval_coverage, "fingerprint", lambda: "of other code")
    run(path, repetitions=30)
    assert set(done) == {cell.name for cell in cells}
