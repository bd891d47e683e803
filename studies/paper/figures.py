"""The figures and the table of McCandlish et al. 2018, from this repository's own sweeps and probes.

    python studies/paper/figures.py

reads the results of `python -m truth table` and `prediction.py` in `benchmarks/results/`, and those of the studies of
reinforcement learning, draws docs/paper/*.png, and prints table 1 of the paper beside ours. It needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rollout_rows import rollout_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "paper"
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
"""Of Okabe and Ito (2008)."""
CHARACTERS = 32
"""Of a sequence: the paper counts the batches of its language model in tokens."""


@dataclass(frozen=True, slots=True)
class System:
    """A system of the paper, and ours that is most like it.

    Attributes:
        name: of ours.
        problem: its name in `benchmarks/truth`.
        paper: the paper's name; None where it has none.
        published: critical batch size at the start and over the run, noise scale at the start and over the run, in the
            paper's table 1.
        unit: examples of ours that the paper counts as one.
    """

    name: str
    problem: str
    paper: str | None = None
    published: tuple[float, float, float, float] | None = None
    unit: int = 1


SYSTEMS = (
    System("CNN, SGD, on MNIST", "mnist_cnn_sgd", "MNIST", (20, 200, 50, 900)),
    System("CNN, Adam, on MNIST", "mnist_cnn_adam"),
    System("CNN, momentum, on CIFAR-10", "cifar_cnn", "CIFAR10", (300, 900, 400, 2000)),
    System("CNN, AdamW, on Imagenette", "imagenette_cnn", "ImageNet", (1000, 15000, 4000, 30000)),
    System("autoencoder on MNIST", "autoencoder", "autoencoder on SVHN", (10, 40, 2, 2)),
    System("VAE on MNIST", "vae", "VAE on SVHN", (10, 200, 10, 10)),
    System("LSTM on Shakespeare", "lstm", "LSTM on Billion Word", (700, 100000, 1000, 150000), CHARACTERS),
    System("transformer on Shakespeare", "transformer", None, None, CHARACTERS),
)


@dataclass(frozen=True, slots=True)
class Level:
    """What is known of the training of a problem down to one loss.

    Attributes:
        loss: at its end.
        constant: the trade-off at constant rates, as `truth.json` has it.
        decaying: the same where the rate decays.
        noise_scale: the simple one at that loss, by the trend of a probe's readings, median over probes; None where
            none was resolved.
        forecast: critical batch size under decay, each probe's (value, low, high).
    """

    loss: float
    constant: dict[str, Any]
    decaying: dict[str, Any] | None
    noise_scale: float | None
    forecast: list[tuple[float, float, float]]


def levels_of(problem: str, truth: dict[str, Any], predictions: dict[str, Any]) -> list[Level]:
    """Of a problem, with falling loss."""
    told = [cell for row in predictions["rows"] if row["problem"] == problem for cell in row["losses"]]
    levels = []
    for row in truth["rows"]:
        if row["problem"] != problem or row["constant"] is None:
            continue
        own = [cell for cell in told if cell["loss"] == row["loss"]]
        noise = [cell["noise"] for cell in own if cell["noise"] is not None]
        forecast = [
            tuple(math.inf if end is None else end for end in cell["prediction"]) for cell in own if cell["prediction"]
        ]
        median = statistics.median(noise) if noise else None
        levels.append(Level(row["loss"], row["constant"], row["decaying"], median, forecast))  # type: ignore[arg-type]
    return sorted(levels, key=lambda level: -level.loss)


def tradeoffs(systems: dict[System, list[Level]]) -> Figure:
    """Steps over examples to each loss, with the hyperbola (the paper's figures 1 and 7)."""
    chosen = [system for system in systems if system.problem in ("mnist_cnn_sgd", "cifar_cnn", "autoencoder", "lstm")]
    figure, axes = _panels(len(chosen), width=3.3)
    for axis, system in zip(axes, chosen, strict=True):
        levels = [level for level in systems[system] if level.constant["critical_batch_size"]]
        shades = np.linspace(0.25, 1.0, len(levels))
        for level, shade in zip(levels, shades, strict=True):
            sizes = np.array(level.constant["batch_sizes"], float)
            examples = np.array([math.nan if n is None else n for n in level.constant["examples"]], float)
            steps_min, examples_min = level.constant["steps_min"][0], level.constant["examples_min"][0]
            colour = (*_rgb(BLUE), shade)
            axis.plot(examples / sizes, examples, "o", color=colour, markersize=4)
            dense = np.geomspace(sizes[0], sizes[-1], 100)
            critical = examples_min / steps_min
            axis.plot(
                steps_min * (1.0 + critical / dense), examples_min * (1.0 + dense / critical), color=colour, linewidth=1
            )
            axis.annotate(
                f"{level.loss:g}", (examples[0] / sizes[0], examples[0]), textcoords="offset points", xytext=(4, 4),
                fontsize=7, color=GREY,
            )  # fmt: skip
        _label(axis, system.name, "steps")
    axes[0].set_ylabel("examples")
    return figure


def over_training(systems: dict[System, list[Level]]) -> Figure:
    """Noise scale and measured critical batch size while the loss falls (figure 4)."""
    figure, axes = _panels(len(systems), width=2.9)
    for axis, (system, levels) in zip(axes, systems.items(), strict=True):
        for key, colour, marker, label in (
            ("constant", BLUE, "o", "critical batch size, constant rate"),
            ("decaying", GREEN, "s", "critical batch size, rate decays"),
        ):
            known = [(level, found) for level in levels if (found := _interval_of(getattr(level, key))) is not None]
            losses = [level.loss for level, _ in known]
            value, low, high = system.unit * np.array([found for _, found in known]).T
            axis.errorbar(
                losses, value, yerr=(value - low, high - value), color=colour, linewidth=1, capsize=2, label=label,
                marker=marker, markersize=4, markerfacecolor="white",
            )  # fmt: skip
            sure = [_critical(getattr(level, key)) is not None for level, _ in known]
            axis.plot(np.array(losses)[sure], value[sure], marker, color=colour, markersize=4)
        read = [(level.loss, system.unit * level.noise_scale) for level in levels if level.noise_scale is not None]
        axis.plot(*zip(*read, strict=True), color=VERMILLION, marker="^", markersize=4, linewidth=1, linestyle="--",
                  label="simple noise scale")  # fmt: skip
        _label(axis, system.name, "loss")
        axis.set_ylabel("examples" if system.unit == 1 else "characters")
        axis.invert_xaxis()
        _few_ticks(axis, [level.loss for level in levels])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def learning_rates(systems: dict[System, list[Level]]) -> Figure:
    """The best constant rate of every batch size, and the one that is predicted (equation 2.7, figure 3's kind)."""
    chosen = [
        system for system in systems if system.problem in ("mnist_cnn_sgd", "cifar_cnn", "mnist_cnn_adam", "lstm")
    ]
    figure, axes = _panels(len(chosen), width=3.3)
    for axis, system in zip(axes, chosen, strict=True):
        level = [level for level in systems[system] if _critical(level.constant) is not None][-1]
        critical = level.constant["critical_batch_size"][0]
        sizes, rates = np.array(level.constant["batch_sizes"], float), np.array(level.constant["learning_rates"], float)
        axis.plot(sizes, rates, "o", color=BLUE, markersize=4, label=f"best of the sweep, to a loss of {level.loss:g}")
        for power, style in ((1.0, "-"), (0.5, "--")):
            shape = (1.0 + critical / sizes) ** -power
            highest = math.exp(float(np.mean(np.log(rates / shape))))
            axis.plot(sizes, highest * shape, style, color=VERMILLION, linewidth=1, label=f"power {power:g}")
        axis.axvline(critical, color=GREY, linewidth=0.8, linestyle=":")
        _label(axis, system.name, "batch size")
        axis.legend(fontsize=7, frameon=False, loc="lower right")
    axes[0].set_ylabel("learning rate")
    return figure


def table(systems: dict[System, list[Level]]) -> str:
    """Table 1 of the paper beside ours, in Markdown."""
    lines = [
        "| system | critical batch size, start and over the run | noise scale, start and end "
        "| rate decays, over the run | our forecast of that | the paper's critical batch size; noise scale |",
        "|---|---|---|---|---|---|",
    ]
    for system, levels in systems.items():
        known = [level for level in levels if _interval_of(level.constant) is not None]
        read = [level.noise_scale for level in levels if level.noise_scale is not None]
        first, last = known[0], known[-1]
        published = "-"
        if system.published is not None:
            start, run, noise, noise_run = (f"{value:,}" for value in system.published)
            published = f"{system.paper}: {start}, {run}; {noise}, {noise_run}"
        noise = "-" if not read else ", ".join(_number(system.unit * value) for value in (read[0], read[-1]))
        lines.append(
            f"| {system.name}{', in characters' if system.unit > 1 else ''} "
            f"| {_interval(first.constant, system.unit)}, {_interval(last.constant, system.unit)} | {noise} "
            f"| {'-' if last.decaying is None else _interval(last.decaying, system.unit)} "
            f"| {_forecast(last, system.unit)} | {published} |"
        )
    return "\n".join(lines)


def errors(systems: dict[System, list[Level]]) -> str:
    """By which factors noise scale and forecast are off, in the geometric mean over all losses."""
    noise, forecast = [], []
    for levels in systems.values():
        for level in levels:
            constant, decaying = _critical(level.constant), _critical(level.decaying)
            if constant is not None and level.noise_scale is not None:
                noise.append(abs(math.log(level.noise_scale / constant[0])))
            if decaying is not None:
                forecast += [abs(math.log(value / decaying[0])) for value, _, _ in level.forecast]
    return (
        f"simple noise scale, for the critical batch size at constant rates: off by {_factor(noise)} "
        f"({len(noise)} losses)\n"
        f"forecast of the critical batch size under decay: off by {_factor(forecast)} ({len(forecast)} forecasts)"
    )


def _interval_of(found: dict[str, Any] | None) -> tuple[float, float, float] | None:
    """Value and interval of a critical batch size; None where the sweep has none."""
    if found is None:
        return None
    value, low, high = found["critical_batch_size"]
    return None if value is None or low is None or high is None else (value, low, high)


def _critical(found: dict[str, Any] | None) -> tuple[float, float, float] | None:
    """The same; None where the sweep is not certain of it too."""
    return _interval_of(found) if found is not None and found["certain"] else None


def _interval(found: dict[str, Any], unit: int) -> str:
    value, low, high = (_number(unit * end) for end in found["critical_batch_size"])
    return f"{value}{'' if found['certain'] else '?'} ({low} to {high})"


def _forecast(level: Level, unit: int) -> str:
    if not level.forecast:
        return "-"
    value, low, high = (statistics.median(ends) for ends in zip(*level.forecast, strict=True))
    return f"{_number(unit * value)} ({_number(unit * low)} to {_number(unit * high)})"


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{float(f'{value:.2g}'):,.0f}"


def _factor(logs: Sequence[float]) -> str:
    return f"{math.exp(statistics.fmean(logs)):.2f}" if logs else "-"


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5))  # type: ignore[return-value]


def _columns(count: int) -> int:
    return min(count, 4)


def _panels(count: int, *, width: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = _columns(count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, 2.9 * rows + 0.3), layout="constrained", dpi=110)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(visible=True, color="#e4e7eb", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(axis: Axes, title: str, xlabel: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=xlabel)
    axis.set_title(title, fontsize=10)


def _few_ticks(axis: Axes, losses: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.xaxis.set_major_locator(FixedLocator([*losses[:-1:2], losses[-1]]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the pictures")
    args = parser.parse_args()
    truth, predictions = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("truth", "prediction"))
    systems = {system: levels_of(system.problem, truth, predictions) for system in SYSTEMS}
    args.output.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("tradeoffs", tradeoffs),
        ("over_training", over_training),
        ("learning_rates", learning_rates),
    ):
        draw(systems).savefig(args.output / f"{name}.png")
        print(f"wrote {args.output / name}.png")
    print("\n".join(["", table(systems), *rollout_rows(), "", errors(systems)]))


if __name__ == "__main__":
    main()
