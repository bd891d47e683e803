"""What the studies found, beside the paper's table 1: prints a table of the results that are kept beside each study.

    python studies/results.py

Batch sizes are in what the paper counts: images, tokens, or steps of the policy.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def rows() -> list[list[str]]:
    """A row for every task that was run in full."""
    found = []
    for path in sorted(HERE.glob("*/result-*.json")):
        result = json.loads(path.read_text())
        name = path.stem.removeprefix("result-")
        unit, trained, plan = result["unit"], result["trained"], result["plan"]
        readings = [_number(_times(unit, reading["batch_size"][0])) for reading in result["noise_scales"]]
        found.append(
            [
                f"[{path.parent.name}]({path.parent.name}/README.md)" + ("" if name == "task" else f", {name}"),
                ", ".join(readings),
                "; ".join(_level(level, unit) for level in result["forecast"]),
                result["paper"] or "-",
                _losses(plan["end"]),
                f"{trained['loss']:.3g}",
                f"{result['seconds_of_processor'] / 60.0:.1f}",
            ]
        )
    return found


def _level(level: dict[str, Any], unit: int) -> str:
    critical = level["critical_batch_size"]
    told = "refused" if critical is None else _interval([_times(unit, each) for each in critical])
    return f"{told} to {level['loss']:.3g}"


def _times(unit: int, value: float | None) -> float:
    """In what the paper counts; infinite where that is what was found."""
    return math.inf if value is None else unit * value


def _interval(values: list[float] | None) -> str:
    if values is None:
        return "-"
    value, low, high = (_number(each) for each in values)
    return f"{value} ({low} to {high})"


def _losses(values: list[float] | None) -> str:
    if values is None:
        return "-"
    value, low, high = (f"{each:.3g}" for each in values)
    return f"{value} ({low} to {high})"


def _number(value: float) -> str:
    """Two digits."""
    if math.isinf(value):
        return "inf"
    return f"{float(f'{value:.2g}'):,g}" if abs(value) >= 1.0 else f"{value:.2g}"


def table() -> str:
    """In Markdown."""
    head = [
        "study",
        "noise scales, along the probe",
        "critical batch size, forecast",
        "the paper's critical batch size; noise scale",
        "loss at the end, planned",
        "trained",
        "minutes of processor",
    ]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
