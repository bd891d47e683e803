"""Draw docs/gain.png: what plans and searches cost, from the results that benchmarks/ keeps.

python docs/scripts/gain.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks/results"
PROBLEMS = {
    "quadratic": "noisy quadratic",
    "digits_softmax": "softmax, digits",
    "digits_mlp": "perceptron, digits",
    "mnist_cnn_sgd": "CNN, MNIST, SGD",
    "mnist_cnn_adam": "CNN, MNIST, Adam",
    "cifar_cnn": "CNN, CIFAR-10",
    "imagenette_cnn": "CNN, Imagenette",
    "autoencoder": "autoencoder, MNIST",
    "vae": "VAE, MNIST",
    "lstm": "LSTM, Shakespeare",
    "transformer": "transformer, Shakespeare",
}
BATCHOPT, OTHERS = "#0072b2", ("#8c8c8c", "#d55e00")


def plan_costs() -> dict[str, list[float]]:
    """Cost over the cheapest setting's, by series and problem: medians over seeds, losses and prices of a step."""
    rows = json.loads((RESULTS / "prediction.json").read_text())["rows"]
    cases = [
        (row["problem"], goal["regret"], loss["baselines"][price])
        for row in rows
        for loss in row["losses"]
        if loss["counted"]
        for price, goal in loss["goals"].items()
    ]
    found: dict[str, list[float]] = {
        "planned by batchopt": [_cost(regret for name, regret, _ in cases if name == problem) for problem in PROBLEMS]
    }
    for label, key in (
        ("batch size 32, learning rate tuned for free", "batch 32, tuned rate"),
        ("largest batch size, learning rate tuned for free", "largest batch, tuned rate"),
    ):
        found[label] = [_cost(others[key] for name, _, others in cases if name == problem) for problem in PROBLEMS]
    return found


def _cost(regrets: Iterable[float | None]) -> float:
    """Median of 1 + regret; a run that never arrives has no regret, and costs infinitely much."""
    return 1.0 + median(math.inf if regret is None else regret for regret in regrets)


def search_costs() -> dict[str, list[float]]:
    """What was spent until a good setting was found, in units of the best setting's cost."""
    problems = json.loads((RESULTS / "search.json").read_text())["summary"]["sweep"]["problems"]

    def spent(name: str, contestant: str) -> float:
        value = problems[name]["contestants"][contestant]["median"]
        return math.inf if value is None else float(value)

    return {
        "batchopt": [spent(name, "batchopt") for name in PROBLEMS],
        "best of eight with Optuna, for that problem": [spent(name, problems[name]["best rival"]) for name in PROBLEMS],
        "random search": [spent(name, "Random") for name in PROBLEMS],
    }


def draw(target: Path) -> None:
    """Draw both panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    _panel(left, plan_costs(), "Planned after a probe: cost of the run\nover that of the cheapest setting")
    _panel(
        right, search_costs(), "Searched without a probe: cost, in runs,\nuntil a setting is within 20 % of the best"
    )
    left.set_yticks(range(len(PROBLEMS)), list(PROBLEMS.values()))
    left.invert_yaxis()
    figure.savefig(target, dpi=110)


def _panel(axes: Any, series: dict[str, list[float]], title: str) -> None:
    places = range(len(PROBLEMS))
    for (label, costs), color, marker in zip(series.items(), (BATCHOPT, *OTHERS), "os^", strict=True):
        axes.plot(costs, places, marker, color=color, label=label, markersize=7)
    axes.hlines(places, 1.0, [max(costs[place] for costs in series.values()) for place in places], "#e5e5e5", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0.93)
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.09), frameon=False, fontsize=9)


if __name__ == "__main__":
    draw(DOCS / "gain.png")
