"""What the sweeps say, as a table: S_min, E_min and B_crit to every loss, with bootstrap intervals and the residual."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine, save

from batchopt.errors import EvidenceError
from batchopt.tradeoff import TradeoffFit, fit_tradeoff
from truth.curves import FOLDER
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
    sweep = sweep_of(name)
    rows = []
    for loss in sweep.problem.losses:
        try:
            found = sweep.tradeoff(loss)
        except EvidenceError as error:
            rows.append({"problem": name, "loss": loss, "failure": str(error)})
            continue
        rows.append(_row(name, found) | {"decaying": _decaying(sweep.decaying_tradeoff(loss))})
    return rows


def _row(name: str, found: Tradeoff) -> dict[str, Any]:
    law = found.fit.law
    return {
        "problem": name,
        "loss": found.loss,
        "steps_min": [law.steps_min, *found.steps_min],
        "examples_min": [law.examples_min, *found.examples_min],
        "critical_batch_size": [law.critical_batch_size, *found.critical_batch_size],
        "certain": found.is_certain,
        "residual": found.fit.rms,
        "batch_sizes": list(found.batch_sizes),
        "examples": list(found.examples),
        "learning_rates": list(found.learning_rates),
    }


def _decaying(fit: TradeoffFit | None) -> dict[str, float] | None:
    if fit is None:
        return None
    law = fit.law
    return {"critical_batch_size": law.critical_batch_size, "steps_min": law.steps_min, "residual": fit.rms}


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
    print(f"{'problem':16}{'loss':>7}{'S_min':>18}{'E_min':>22}{'B_crit':>18}{'residual':>10}{'cosine B_crit':>15}")
    for row in rows:
        print(_shown(row))
    print("\n? not certain: the interval reaches further than a factor of 1.5 from the value\n")
    for row in published:
        value, low, high = row["critical_batch_size"]
        told = f"B_crit {value:.0f} sequences ({low:.0f} to {high:.0f}), residual {row['residual']:.1%}"
        print(f"{row['problem']:28} to loss {row['loss']:g}: {told}")


def _shown(row: dict[str, Any]) -> str:
    begin = f"{row['problem']:16}{row['loss']:7g}"
    if "failure" in row:
        return f"{begin}  {row['failure']}"
    cells = [_interval(row[key]) for key in ("steps_min", "examples_min", "critical_batch_size")]
    mark = " " if row["certain"] else "?"
    cosine = "" if row["decaying"] is None else f"{row['decaying']['critical_batch_size']:.0f}"
    return f"{begin}{cells[0]:>18} {cells[1]:>21} {cells[2]:>16}{mark}{row['residual']:>10.1%}{cosine:>15}"


def _interval(values: Sequence[float]) -> str:
    value, low, high = (f"{x:.3g}" if x < 1000 or not math.isfinite(x) else f"{x:.0f}" for x in values)
    return f"{value} ({low}-{high})"
