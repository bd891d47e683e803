"""The figures of studies/paper/dynamics.json, and the numbers that docs/paper.md gives of them.

    python studies/paper/dynamics_figures.py

It needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "docs" / "paper"
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
"""Of Okabe and Ito (2008)."""
Rows = Sequence[dict[str, Any]]


def levels_of(rows: Rows) -> list[float]:
    """Losses at which every run was read."""
    read = [{reading["loss"] for reading in row["readings"]} for row in rows]
    return sorted(set.intersection(*read), reverse=True)


def scale_at(row: dict[str, Any], loss: float) -> float:
    """Noise scale of a run at a loss."""
    return next(float(reading["noise_scale"]) for reading in row["readings"] if reading["loss"] == loss)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of log y over log x, by least squares."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def temperature(axis: Axes, rows: Rows) -> str:
    """Noise scale over temperature at equal losses: the paper expects a slope of -1 (appendix C)."""
    said = []
    levels = levels_of(rows)
    for loss, shade in zip(levels, np.linspace(0.35, 1.0, len(levels)), strict=True):
        temperatures = [row["rate"] / row["size"] for row in rows]
        scales = [scale_at(row, loss) for row in rows]
        axis.plot(temperatures, scales, "o", color=BLUE, alpha=shade, markersize=4, label=f"loss {loss:g}")
        said.append(f"to a loss of {loss:g} {slope(temperatures, scales):.2f}")
    middle = math.exp(statistics.fmean(math.log(row["rate"] / row["size"]) for row in rows))
    top = statistics.median(scale_at(row, levels[-1]) for row in rows)
    line = np.array([middle / 6.0, middle * 4.0])
    axis.plot(line, top * middle / line, "--", color=GREY, linewidth=1, label="1 / temperature")
    axis.set(xscale="log", yscale="log", xlabel="learning rate / batch size", ylabel="simple noise scale, examples")
    axis.set_title("Temperature", fontsize=10)
    axis.legend(fontsize=7, frameon=False)
    return f"slope of the noise scale over temperature (the paper: -1): {', '.join(said)}"


def model_size(axis: Axes, rows: Rows) -> str:
    """Noise scale over the number of parameters at equal losses: the paper expects no slope."""
    said = []
    levels = levels_of(rows)
    for loss, shade in zip(levels, np.linspace(0.35, 1.0, len(levels)), strict=True):
        sizes, scales = [row["parameters"] for row in rows], [scale_at(row, loss) for row in rows]
        axis.plot(sizes, scales, "o", color=GREEN, alpha=shade, markersize=4, label=f"loss {loss:g}")
        means = {size: _mean(s for n, s in zip(sizes, scales, strict=True) if n == size) for size in sorted(set(sizes))}
        axis.plot(list(means), list(means.values()), color=GREEN, alpha=shade, linewidth=1)
        said.append(f"to a loss of {loss:g} {slope(sizes, scales):.2f}")
    axis.set(xscale="log", yscale="log", xlabel="parameters", ylabel="simple noise scale, examples")
    axis.set_title("Model size", fontsize=10)
    axis.legend(fontsize=7, frameon=False)
    return f"slope of the noise scale over parameters (the paper: 0): {', '.join(said)}"


def adaptive(axis: Axes, rows: Rows) -> str:
    """Examples over steps to one loss with constant batch sizes and with those that follow the noise scale (D)."""
    fronts = {kind: front(rows, kind) for kind in ("constant", "adaptive")}
    for (kind, points), colour in zip(fronts.items(), (BLUE, VERMILLION), strict=True):
        steps, examples = zip(*points, strict=True)
        axis.plot(steps, examples, "o-", color=colour, markersize=4, linewidth=1, label=f"{kind} batch size")
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="examples")
    axis.set_title("Adaptive batch size, to a loss of 0.12", fontsize=10)
    axis.legend(fontsize=7, frameon=False)
    saved = [math.log(examples / between) for steps, examples in fronts["adaptive"]
             if (between := _on(fronts["constant"], steps)) is not None]  # fmt: skip
    if not saved:
        return "adaptive batch sizes: no point within the front of constant ones"
    return (
        f"examples with an adaptive batch over those of the front of constant ones at the same steps: "
        f"{math.exp(statistics.fmean(saved)):.2f} (from {math.exp(min(saved)):.2f} to {math.exp(max(saved)):.2f}, "
        f"{len(saved)} points)"
    )


def front(rows: Rows, kind: str) -> list[tuple[float, float]]:
    """(steps, examples) of every batch size or balance at its best rate, means of logs over seeds; by steps."""
    points = []
    own = [row for row in rows if row["kind"] == kind]
    for value in sorted({row["value"] for row in own}):
        of_rates = []
        for highest in sorted({row["highest"] for row in own}):
            runs = [row for row in own if (row["value"], row["highest"]) == (value, highest)]
            if runs and all(row["examples"] for row in runs):
                of_rates.append((_mean(row["steps"] for row in runs), _mean(row["examples"] for row in runs)))
        if of_rates:
            # Of one batch size steps and examples are in proportion; of an adaptive one the best has the least product.
            points.append(min(of_rates, key=lambda point: point[0] * point[1]))
    return sorted(points)


def _on(points: list[tuple[float, float]], steps: float) -> float | None:
    """Examples of a front at so many steps, interpolated; None beyond its ends."""
    logs = np.log(points)
    if not logs[0, 0] <= math.log(steps) <= logs[-1, 0]:
        return None
    return math.exp(float(np.interp(math.log(steps), logs[:, 0], logs[:, 1])))


def _mean(values: Any) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the picture")
    parser.add_argument("--input", type=Path, default=HERE / "dynamics.json")
    args = parser.parse_args()
    found = json.loads(args.input.read_text())
    figure = Figure(figsize=(11.0, 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, 3)
    for axis, draw in zip(axes, (temperature, model_size, adaptive), strict=True):
        axis.grid(visible=True, color="#e4e7eb", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        print(draw(axis, found[draw.__name__]))
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            each.set_minor_formatter(NullFormatter())
    axes[2].set_xticks([150, 300, 600])
    args.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output / "dynamics.png")
    print(f"wrote {args.output / 'dynamics.png'}")


if __name__ == "__main__":
    main()
