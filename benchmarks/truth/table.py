"""What the sweeps say of every loss, as a table: S_min, E_min, B_crit and the best rate, constant and decaying."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, save

from batchopt.errors import EvidenceError
from batchopt.tradeoff import fit_tradeoff
from truth.curves import FOLDER
from truth.decayed import decayed_sweep_of, has_decays
from truth.problems import PROBLEMS
from truth.tradeoff import Tradeoff, sweep_of

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "truth.json"
LANGUAGE_MODELS = HERE.parent.parent / "tests" / "data" / "zhang_steps_to_target.json"


def swept() -> list[str]:
    """Problems whose sweep is in the repository."""
    return [name for name in PROBLEMS if (FOLDER / f"{name}.npz").exists()]


def rows_of(name: str) -> list[dict[str, Any]]:
    """One row for each loss of a problem."""
    rows = []
    for loss in PROBLEMS[name].losses:
        row: dict[str, Any] = {"problem": name, "loss": loss}
        try:
            row["constant"] = _told(sweep_of(name).tradeoff(loss))
        except EvidenceError as error:
            row["constant"] = {"failure": str(error)}
        rows.append(row | {"decaying": _decaying(name, loss)})
    return rows


def _told(found: Tradeoff) -> dict[str, Any]:
    law = found.fit.law
    return {
        "steps_min": [law.steps_min, *found.steps_min],
        "examples_min": [law.examples_min, *found.examples_min],
        "critical_batch_size": [law.critical_batch_size, *found.critical_batch_size],
        "learning_rate": best_rate(found),
        "certain": found.is_certain,
        "residual": found.fit.rms,
        "batch_sizes": list(found.batch_sizes),
        "examples": list(found.examples),
        "learning_rates": list(found.learning_rates),
    }


def best_rate(found: Tradeoff) -> float:
    """The best learning rate at the critical batch size, interpolated over batch sizes."""
    at = math.log(found.fit.law.critical_batch_size)
    return math.exp(float(np.interp(at, np.log(found.batch_sizes), np.log(found.learning_rates))))


def _decaying(name: str, loss: float) -> dict[str, Any] | None:
    """As for constant rates; None where nothing decays, or every run is at the loss by its shortest horizon."""
    if not has_decays(name):
        return None
    sweep = decayed_sweep_of(name)
    found = sweep.tradeoff(loss)
    if found is None:
        return None
    nearest = min(found.batch_sizes, key=lambda size: abs(math.log(size / found.fit.law.critical_batch_size)))
    k = found.batch_sizes.index(nearest)
    held_out = sweep.held_out(nearest, found.learning_rates[k], found.examples[k])
    return _told(found) | {"resolved": sweep.is_resolved(found), "held_out_loss": held_out}


def language_models() -> list[dict[str, Any]]:
    """The five language models of Zhang et al. 2024 (arXiv 2410.21676), from their published steps to a target."""
    published = json.loads(LANGUAGE_MODELS.read_text(encoding="utf-8"))
    rows = []
    for name, steps in published["steps"].items():
        fit = fit_tradeoff(published["batch_sizes_sequences"], steps)
        crit = fit.critical_batch_size
        rows.append(
            {
                "problem": f"AdamW language model, {name}",
                "loss": published["target_loss"][name],
                "critical_batch_size": [crit.value, crit.low, crit.high],
                "residual": fit.rms,
            }
        )
    return rows


def table() -> None:
    """Print the table and save it."""
    rows = [row for name in swept() for row in rows_of(name)]
    published = language_models()
    save(RESULT, {"machine": machine(), "rows": rows, "language_models": published})
    columns = ("S_min", "E_min", "B_crit", "rate", "residual")
    for row in rows:
        for shape in ("constant", "decaying"):
            if row[shape] is not None:
                print(_shown(row, shape))
    print(f"\ncolumns: problem, loss, rates, {', '.join(columns)}, held-out loss (of decayed runs)")
    print("? not certain: the interval reaches further than a factor of 1.5 from the value")
    print("! not resolved: the fewest steps are those of the shortest horizons, of 16 steps\n")
    for row in published:
        value, low, high = row["critical_batch_size"]
        told = f"B_crit {value:.0f} sequences ({low:.0f} to {high:.0f}), residual {row['residual']:.1%}"
        print(f"{row['problem']:28} to loss {row['loss']:g}: {told}")


def _shown(row: dict[str, Any], shape: str) -> str:
    told, begin = row[shape], f"{row['problem']:16}{row['loss']:7g}  {shape:9}"
    if "failure" in told:
        return f"{begin}  {told['failure']}"
    cells = [_interval(told[key]) for key in ("steps_min", "examples_min", "critical_batch_size")]
    mark = "!" if not told.get("resolved", True) else " " if told["certain"] else "?"
    held_out = "" if told.get("held_out_loss") is None else f"{told['held_out_loss']:10.3g}"
    numbers = f"{told['learning_rate']:9.3g}{told['residual']:8.1%}{held_out}"
    return f"{begin}{cells[0]:>18} {cells[1]:>21} {cells[2]:>16}{mark}{numbers}"


def _interval(values: Sequence[float]) -> str:
    value, low, high = (f"{x:.3g}" if x < 1000 or not math.isfinite(x) else f"{x:.0f}" for x in values)
    return f"{value} ({low}-{high})"
