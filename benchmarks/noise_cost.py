"""How many examples does a noise scale cost, beside the estimators of others?

The cost is that of the examples that get a gradient until the root-mean-square error of the noise scale's logarithm
over repetitions is 0.2. Ours pools all examples at frozen weights. The others read what a training run computes anyway,
batch by batch, so the run's batch size is given, and their own settings are searched for the best:

- k-diffusion (crowsonkb/k-diffusion, k_diffusion/gns.py at 0541011): gradients of 2 or 8 ranks and their mean;
- per-example norms (CerebrasResearch/nanoGNS, gns_utils.py at 48e891c, and elyxlz/gns-pytorch, gns.py at c6eb6d5, which
  share their formulas): gradients of single examples, and their mean over the batch;
- sequential batches (EleutherAI/gpt-neox, gradient_noise_scale.py at 0b8fee9; lsds/KungFu averages likewise): the last
  of 2 to 100 batches, and the mean of all of them.

All of them average |G|^2 and tr(Sigma) by exponential moving averages, whose decay is searched up to the plain mean.

What favours the others: the weights stand still for them too; decay, ranks and number of batches are chosen knowing the
truth; a reading without a positive ratio is left out, where no more than one in twenty is so; the first step at which
the error is small enough counts, even if it is larger later. What favours us: their examples also train the model, ours
do not. And a batch as large as the noise scale is a pooled measurement by itself: there the per-example peers are about
as good as we are. Noise along G is not pooled away: the more of it, the less is gained.

Run `python benchmarks/noise_cost.py`; `--quick` runs few batch sizes and keeps nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interval_coverage import Cell, repeat
from machine import machine, save
from populations import Floats, Population, along_the_gradient, few_dimensions, isotropic
from scipy.signal import lfilter

RESULT = Path(__file__).parent / "results" / "noise_cost.json"
REPETITIONS = 200
ERROR = 0.2
"""Root-mean-square error of the logarithm that is to be reached."""
LEFT_OUT = 0.05
"""Share of readings without a positive ratio that may be left out."""
NOISE_SCALE = 1_024
SMALLER_BATCHES = (32, 16, 8, 4, 2, 1)
"""The batch size of the run, as a divisor of the noise scale."""
DECAYS = (0.9, 0.99, 0.999, 0.9998, 1.0)
"""Of the moving averages; 1 is the plain mean of all steps."""
RANKS = (2, 8)
SEQUENTIAL = (2, 5, 10, 20, 50, 100)
OVERHEADS = (1.0, 1.15, 1.5)
"""Time of a step with per-example norms in plain steps; measured by gradient_norms.py."""
TARGET = 3.0


@dataclass(frozen=True)
class Gradients:
    """Squared norms of Gaussian mean gradients, drawn by groups of dimensions that are alike.

    Attributes:
        variances: of a single example's gradient in one dimension of each group, (groups,).
        dimensions: of each group, (groups,).
        signal: squared length of G in each group, (groups,).
    """

    variances: Floats
    dimensions: Floats
    signal: Floats

    @classmethod
    def of(cls, population: Population) -> Gradients:
        """Dimensions of the same variance in one group."""
        variances, group, counts = np.unique(population.variances, return_inverse=True, return_counts=True)
        return cls(variances, counts.astype(float), np.bincount(group, population.mean**2))

    def norms(
        self, rng: np.random.Generator, examples: int, shape: tuple[int, ...], around: Floats | None = None
    ) -> Floats:
        """Squared norm in each group of the mean of so many examples, (groups, *shape).

        Args:
            rng: what is drawn is drawn from it.
            examples: averaged over; a fraction for the difference of two means.
            shape: repetitions and steps.
            around: squared lengths of the vectors that it is drawn around, (groups, *shape); None for G.
        """
        drawn = np.empty((len(self.variances), *shape))
        for k, (variance, count) in enumerate(zip(self.variances / examples, self.dimensions, strict=True)):
            centre = np.sqrt((self.signal[k] if around is None else around[k]) / variance)
            first = rng.standard_normal(shape) + centre
            drawn[k] = variance * (first**2 + (rng.chisquare(count - 1, shape) if count > 1 else 0.0))
        return drawn

    def scatter(self, rng: np.random.Generator, examples: int, count: int, shape: tuple[int, ...]) -> Floats:
        """Mean square, about their own mean, of `count` means of `examples` examples each, (shape)."""
        total = np.zeros(shape)
        for variance, dimensions in zip(self.variances, self.dimensions, strict=True):
            total += variance / examples / count * rng.chisquare((count - 1) * dimensions, shape)
        return total


def from_norms(small: Floats, large: Floats, n_small: float, n_large: float) -> tuple[Floats, Floats]:
    """|G|^2 and tr(Sigma) from squared norms at two batch sizes, as in appendix A.1 and in all of the peers."""
    signal = (n_large * large - n_small * small) / (n_large - n_small)
    return signal, (small - large) / (1.0 / n_small - 1.0 / n_large)


def cost(signal: Floats, noise: Floats, decay: float, examples_per_step: int, truth: float) -> float:
    """Examples until moving averages reach the error; infinite where they do not.

    Args:
        signal: |G|^2 of every step, (repetitions, steps).
        noise: tr(Sigma) of every step, likewise.
        decay: of the averages, which start without bias; 1 averages all steps alike.
        examples_per_step: between two readings.
        truth: the noise scale.
    """
    averages = [lfilter([1.0], [1.0, -decay], values, axis=1) for values in (signal, noise)]
    positive = (averages[0] > 0) & (averages[1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = np.where(positive, np.log(averages[1] / averages[0] / truth) ** 2, 0.0)
    shown = positive.sum(0)
    enough = shown >= (1.0 - LEFT_OUT) * len(signal)
    reached = enough & (squares.sum(0) <= ERROR**2 * np.maximum(shown, 1))
    return float((np.argmax(reached) + 1) * examples_per_step) if reached.any() else math.inf


def most_steps(population: Population, examples_per_step: int) -> int:
    """Half as many steps again as plain means of single gradients need."""
    ratio = population.noise_scale / examples_per_step
    needed = (2.0 * ratio / population.d_eff + 4.0 * population.rho) / ERROR**2 * population.noise_scale
    return math.ceil(1.5 * needed / examples_per_step) + 20


def k_diffusion(population: Population, batch: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for ranks in RANKS:
        yield from _averaged(population, batch, rng, count=ranks, setting={"ranks": ranks})


def per_example(population: Population, batch: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    yield from _averaged(population, batch, rng, count=batch, setting={})


def _averaged(
    population: Population, batch: int, rng: np.random.Generator, *, count: int, setting: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Norms of `count` parts of a batch and of their mean."""
    gradients, shape = Gradients.of(population), (REPETITIONS, most_steps(population, batch))
    large = gradients.norms(rng, batch, shape).sum(0)
    small = large + gradients.scatter(rng, batch // count, count, shape)
    signal, noise = from_norms(small, large, batch // count, batch)
    for decay in DECAYS:
        examples = cost(signal, noise, decay, batch, population.noise_scale)
        yield {**setting, "decay": decay, "examples": examples}


def sequential(population: Population, batch: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The last of several batches, and the mean of all."""
    gradients = Gradients.of(population)
    for count in SEQUENTIAL:
        # One small batch in `count` shows the noise, so that more steps are needed than for all of the small ones.
        steps = most_steps(population, batch * count) + math.ceil(20 / ERROR**2 / population.d_eff)
        large = gradients.norms(rng, batch * count, (REPETITIONS, steps))
        apart = batch / (1.0 - 1.0 / count)
        small = gradients.norms(rng, apart, (REPETITIONS, steps), around=large).sum(0)
        signal, noise = from_norms(small, large.sum(0), batch, batch * count)
        for decay in DECAYS:
            examples = cost(signal, noise, decay, batch * count, population.noise_scale)
            yield {"batches": count, "decay": decay, "examples": examples}


PEERS = {"k-diffusion": k_diffusion, "per-example norms": per_example, "sequential batches": sequential}


def ours_fixed(population: Population, seed: int) -> dict[str, Any]:
    """The fewest examples that reach the error, by bisection to 2 %; the same draws at every number."""
    low, high = population.noise_scale / 8.0, population.noise_scale * 128.0
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        cell = Cell(population, round(middle))
        readings = [repeat(cell, np.random.default_rng([seed, k])).reading for k in range(REPETITIONS)]
        enough = _error([(r.signal, r.noise) for r in readings], population.noise_scale) <= ERROR
        low, high = (low, middle) if enough else (middle, high)
    return {"examples": float(round(high))}


def ours_adaptive(population: Population, seed: int) -> dict[str, Any]:
    """The widest relative width, in steps of a tenth, that reaches the error, and the mean number of examples."""
    for width in np.arange(1.2, 0.2, -0.1).round(1).tolist():
        cell = Cell(population, 10**6, relative_width=width)
        readings = [repeat(cell, np.random.default_rng([seed, k])).reading for k in range(REPETITIONS)]
        if _error([(r.signal, r.noise) for r in readings], population.noise_scale) <= ERROR:
            return {"relative_width": width, "examples": float(np.mean([r.examples for r in readings]))}
    raise RuntimeError("no width of 0.3 or more reaches the error")


def _error(readings: list[tuple[float, float]], truth: float) -> float:
    """Root-mean-square error of the logarithm; infinite where too many have no positive ratio."""
    logs = [math.log(noise / signal / truth) for signal, noise in readings if signal > 0]
    if len(logs) < (1.0 - LEFT_OUT) * len(readings):
        return math.inf
    return math.sqrt(float(np.mean(np.square(logs))))


def best(settings: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The setting that costs least; `examples` is None where none reaches the error."""
    chosen = min(settings, key=lambda setting: setting["examples"])
    return chosen if math.isfinite(chosen["examples"]) else {"examples": None}


def compare(population: Population, *, divisors: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """One population's part of the result; JSON types only."""
    fixed, adaptive = ours_fixed(population, seed), ours_adaptive(population, seed)
    print(f"\n{population.name}: d_eff {population.d_eff:.1f}, rho {population.rho:.3f}")
    print(
        f"  ours {fixed['examples']:.0f} examples, adaptive {adaptive['examples']:.0f} ({adaptive['relative_width']})"
    )
    batches = []
    for divisor in divisors:
        batch = NOISE_SCALE // divisor
        rng = np.random.default_rng([seed, divisor])
        peers = {name: best(peer(population, batch, rng)) for name, peer in PEERS.items()}
        least = min(peer["examples"] for peer in peers.values() if peer["examples"] is not None)
        row = {
            "batch": batch,
            "peers": peers,
            "ratio": least / fixed["examples"],
            "ratio_adaptive": least / adaptive["examples"],
            "ratio_by_overhead": {str(f): least / fixed["examples"] / f for f in OVERHEADS},
        }
        batches.append(row)
        print(_line(row), flush=True)
    return {
        "population": population.name,
        "noise_scale": population.noise_scale,
        "d_eff": population.d_eff,
        "rho": population.rho,
        "ours": {"fixed": fixed, "adaptive": adaptive},
        "batches": batches,
    }


def _line(row: dict[str, Any]) -> str:
    words = []
    for name, peer in row["peers"].items():
        setting = ", ".join(f"{key} {value:g}" for key, value in peer.items() if key != "examples")
        words.append(f"{name} {peer['examples'] or math.inf:9.0f} ({setting})")
    ratios = f"least / ours {row['ratio']:5.1f}, adaptive {row['ratio_adaptive']:5.1f}"
    missed = "" if row["ratio"] >= TARGET else f"  below {TARGET:g}"
    return f"  batch {row['batch']:5d}  {ratios}  {'  '.join(words)}{missed}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a noise scale costs, beside the estimators of others.")
    parser.add_argument("--quick", action="store_true", help="two batch sizes, nothing kept")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    divisors = SMALLER_BATCHES[2:4] if arguments.quick else SMALLER_BATCHES
    populations = [make(NOISE_SCALE) for make in (isotropic, few_dimensions, along_the_gradient)]
    compared = [compare(population, divisors=divisors) for population in populations]
    print(f"\n{time.perf_counter() - started:.0f} s")
    if not arguments.quick:
        settings = {"decays": DECAYS, "ranks": RANKS, "sequential": SEQUENTIAL}
        head = {"machine": machine(), "error": ERROR, "repetitions": REPETITIONS, "settings": settings}
        save(arguments.result, head | {"populations": compared})


if __name__ == "__main__":
    main()
