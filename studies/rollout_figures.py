"""The trade-off between steps and examples in reinforcement learning, from the sweeps that are kept beside the studies.

    python studies/rollout_figures.py

draws docs/paper/rollouts.png and prints the critical batch sizes. It needs matplotlib and gymnasium.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rollout_sweep import Grid, critical_batch_sizes, fewest_examples, say_fit

HERE = Path(__file__).parent
PICTURES = HERE.parent / "docs" / "paper"
COLUMNS = 3
BLUE = 0.0, 0.447, 0.698


def sweeps() -> dict[str, tuple[Grid, list[dict[str, Any]], str]]:
    """By name: the grid, the runs that are kept, and what an example is."""
    found = {}
    for name, folder, game, unit in (
        ("CartPole, A2C", "classic_control", "cartpole", "examples of 16 steps"),
        ("Acrobot, A2C", "classic_control", "acrobot", "examples of 16 steps"),
        ("Breakout, A2C", "atari", "breakout", "examples of 5 steps"),
        ("CartPole, PPO", "ppo", "cartpole", "episodes"),
        ("Pendulum, PPO", "ppo", "pendulum", "episodes of 200 steps"),
        ("LunarLander, PPO", "ppo", "lander", "episodes"),
    ):
        path = HERE / folder / f"sweep-{game}.jsonl"
        if not path.exists():
            continue
        sys.path.insert(0, str(HERE / folder))
        sys.modules.pop("problem", None)
        grid = runpy.run_path(str(HERE / folder / "sweep.py"))["GRIDS"][game]
        sys.path.pop(0)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = grid, rows, unit
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the picture")
    args = parser.parse_args()
    known = sweeps()
    rows = math.ceil(len(known) / COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3.2 * rows), layout="constrained", dpi=110)
    axes = [figure.add_subplot(rows, COLUMNS, k + 1) for k in range(len(known))]
    for axis, (name, (grid, runs, unit)) in zip(axes, known.items(), strict=True):
        fits = critical_batch_sizes(runs, grid.scores)
        shades = np.linspace(0.3, 1.0, len(grid.scores))
        for score, shade in zip(grid.scores, shades, strict=True):
            points = {
                size: statistics.median(seeds)
                for size, seeds in fewest_examples(runs, score).items()
            }  # fmt: skip
            steps = [examples / size for size, examples in points.items()]
            axis.plot(steps, list(points.values()), "o", color=(*BLUE, shade), markersize=4, label=f"score {score:g}")
            if score in fits:
                law = fits[score].law
                sizes = np.geomspace(min(points), max(points), 60)
                axis.plot([law.steps(b) for b in sizes], [law.examples(b) for b in sizes], color=(*BLUE, shade), lw=1)
                print(f"{name}, {say_fit(score, fits[score])} {unit}")
        axis.set(xscale="log", yscale="log", xlabel="steps", ylabel=unit)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            each.set_minor_formatter(NullFormatter())
        axis.set_title(name, fontsize=10)
        axis.grid(visible=True, color="#e4e7eb", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False)
    args.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output / "rollouts.png")
    print(f"wrote {args.output / 'rollouts.png'}")


if __name__ == "__main__":
    main()
