"""The paper's figures and table, from the results that are kept here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

FIGURES = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "paper" / "figures.py"))


def trade_off(value: float, *, certain: bool = True) -> dict[str, Any]:
    return {
        "critical_batch_size": [value, 0.8 * value, 1.25 * value],
        "certain": certain,
        "steps_min": [10.0, 9.0, 11.0],
        "examples_min": [10.0 * value, 9.0 * value, 11.0 * value],
        "batch_sizes": [4, 8],
        "examples": [30.0, None],
        "learning_rates": [0.1, 0.2],
    }


def cell(loss: float, noise: float | None, prediction: list[float | None] | None) -> dict[str, Any]:
    return {"loss": loss, "noise": noise, "prediction": prediction}


TRUTH = {
    "rows": [
        {"problem": "lstm", "loss": 2.0, "constant": trade_off(100.0), "decaying": trade_off(40.0, certain=False)},
        {"problem": "lstm", "loss": 3.0, "constant": trade_off(10.0), "decaying": None},
        {"problem": "vae", "loss": 1.0, "constant": trade_off(7.0), "decaying": None},
    ]
}
PREDICTIONS = {
    "rows": [
        {"problem": "lstm", "losses": [cell(3.0, 20.0, None), cell(2.0, 50.0, [60.0, 30.0, None])]},
        {"problem": "lstm", "losses": [cell(2.0, 150.0, [80.0, 50.0, 120.0])]},
    ]
}


def levels() -> dict[Any, Any]:
    system = next(system for system in FIGURES["SYSTEMS"] if system.problem == "lstm")
    return {system: FIGURES["levels_of"]("lstm", TRUTH, PREDICTIONS)}


def test_losses_fall_and_probes_are_put_together() -> None:
    ((_, found),) = levels().items()
    assert [level.loss for level in found] == [3.0, 2.0]
    assert [level.noise_scale for level in found] == [20.0, 100.0]
    assert found[1].forecast == [(60.0, 30.0, float("inf")), (80.0, 50.0, 120.0)]


def test_the_table_counts_characters_and_marks_what_is_not_certain() -> None:
    row = FIGURES["table"](levels()).splitlines()[-1]
    cells = [part.strip() for part in row.split("|")[1:-1]]
    assert cells[1] == "320 (260 to 400), 3,200 (2,600 to 4,000)"
    assert cells[2] == "640, 3,200"
    assert cells[3] == "1,300? (1,000 to 1,600)"
    assert cells[4] == "2,200 (1,300 to inf)"
    assert cells[5].startswith("LSTM on Billion Word: 700, 100,000;")


def test_errors_are_of_what_is_certain_alone() -> None:
    told = FIGURES["errors"](levels())
    assert "off by 1.41 (2 losses)" in told  # 20 for 10, and 100 for 100
    assert "off by - (0 forecasts)" in told


def test_the_page_has_the_table_and_pictures_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures.py", "--output", str(tmp_path)])
    FIGURES["main"]()
    page = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(FIGURES["SYSTEMS"]) + len(FIGURES["rollout_rows"]())
    assert all(row in page for row in rows)
    for name in ("tradeoffs", "over_training", "learning_rates"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        assert f"paper/{name}.png" in page


def test_the_page_has_the_slopes_and_the_saving_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dynamics = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "paper" / "dynamics_figures.py"))
    monkeypatch.setattr(sys, "argv", ["dynamics_figures.py", "--output", str(tmp_path)])
    dynamics["main"]()
    page = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
    said = capsys.readouterr().out
    slopes = [float(each) for each in re.findall(r"to a loss of [\d.]+ (-?\d\.\d\d)", said)]
    assert len(slopes) == 8
    assert all(f"{slope:g}" in page for slope in slopes)
    saving, *ends = re.findall(r"\d\.\d\d", said.splitlines()[2])
    assert f"they took {saving} of the examples at the same steps ({ends[0]} to {ends[1]}" in page
    assert (tmp_path / "dynamics.png").stat().st_size > 20_000


def test_an_adaptive_front_below_the_constant_one_saves_examples() -> None:
    """Of two hyperbolas, one of half the examples at the same steps."""
    dynamics = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "paper" / "dynamics_figures.py"))
    rows = [
        {"kind": kind, "value": size, "highest": rate, "seed": 0, "steps": 100.0 + 1e4 / size,
         "examples": share * rate * (100.0 * size + 1e4)}
        for kind, share in (("constant", 1.0), ("adaptive", 0.5))
        for size in (16, 64, 256)
        for rate in (1.0, 1.5)
    ]  # fmt: skip
    from matplotlib.figure import Figure

    assert "same steps: 0.50 (from 0.50 to 0.50, 3 points)" in dynamics["adaptive"](Figure().subplots(), rows)
