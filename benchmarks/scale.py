"""What probes of a tenth, a hundredth and a thousandth of a run predict, where the truth is known at any scale.

A noisy quadratic with 10^6 modes, whose curvatures and starts follow power laws, has losses in closed form under any
batch size and learning rate (`truth/quadratic.py` has the recursion; here modes of nearly equal curvature share one).
The full run has a budget of 2^27 examples at a batch of 1,024, as a language model's has tokens. Probes make nearly
the runs that `batchopt.probe` makes, with the same shares of their budget, and their losses get the scatter of single
runs. From each the plan for the lowest loss within the full run's budget: where it ends, beside the lowest loss of a
grid of settings, what was predicted, and where the setting of the probe's lowest run ends, which is what one takes from
small runs without a law. Then language models (Step Law's table, see `steplaw.py`): the setting that the law of all
runs of the fewest tokens chooses for more tokens, by how many times more; the table has no runs as short as a probe's.
Last what such probes of a language model take.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import factor, finite, geometric_mean, interval_of, is_inside, share
from joblib import Parallel, delayed
from language_models import language_rows, price_of_probe
from large_quadratic import FLOOR, FULL, FULL_BATCH, MODES, WORLDS, World
from machine import machine, save

from batchopt import Forecast, LearningRateSchedule, LowestLoss, StepCost
from batchopt.errors import BatchoptError
from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance
from batchopt.learning_rate_schedule import Shape
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.probing.budget import (
    COOLED_RATES,
    EXTRA_RATES,
    FINE_FACTOR,
    FINE_RATES,
    LEAST_COOLDOWN_STEPS,
    LONG_COOLDOWNS,
    RATES,
    SEARCH_FACTOR,
    SHARES,
    SHORT_COOLDOWN,
    choose_batch_sizes,
    price_of,
    search_budget,
    short_run_budget,
    warmup_within,
)
from batchopt.probing.evaluation import HOPELESS
from batchopt.probing.short_runs import RATE_EXPONENT
from batchopt.tradeoff import hyperbolas_through
from batchopt.uncertainty import log_normal

RESULT = Path(__file__).parent / "results" / "scale.json"
PARTS = (0.1, 0.01, 0.001)
SEEDS = (0, 1, 2)
SCATTER = 0.01
"""Of the log losses of a run, shared by all of its points: what single runs of the sweeps scatter by at the ends of
their decays, in the middle."""
PRICES = {"seconds at 64 + B": StepCost(64.0, 1.0), "seconds at 4096 + B": StepCost(4096.0, 1.0)}
READING_ERROR = 0.3
"""Standard error of the log of a noise scale, as a probe's."""
SHAPES: tuple[Shape, ...] = ("wsd", "linear", "cosine")
"""Of the learning rate, of which the truth takes the best."""
SIZES = tuple(2**k for k in range(2, 19, 2))
RATES_TRIED = tuple(np.exp2(np.arange(-9.0, 1.25, 0.5)))
"""The grid of the truth: batch sizes a factor of 4 apart, rates half an octave."""


@dataclass(frozen=True)
class Truth:
    """The full run's, by brute force.

    Attributes:
        lowest: losses at the end of the budget at the best setting and schedule of the grid, by price.
        critical_batch_size: E_min / S_min of the loss that `FULL_BATCH` reaches at its best rate.
        loss: that one.
    """

    lowest: dict[str, float]
    critical_batch_size: float
    loss: float

    @classmethod
    def of(cls, world: World) -> Truth:
        """Over batch sizes, rates and horizons."""
        lowest = {
            label: min(
                world.end(size, rate, budgeted(size, price), shape)
                for size in SIZES
                for rate in RATES_TRIED
                for shape in SHAPES
            )
            for label, price in PRICES.items()
        }
        loss = min(world.end(FULL_BATCH, rate, FULL) for rate in RATES_TRIED)
        fewest = np.array([min(world.examples_to(loss, size, rate) for rate in RATES_TRIED) for size in SIZES])
        fine = np.isfinite(fewest)
        steps, examples = hyperbolas_through(np.array(SIZES, float)[fine], (fewest / SIZES)[None, fine])
        return cls(lowest, float(examples[0] / steps[0]), loss)


def budgeted(batch_size: int, price: StepCost) -> int:
    """Examples of a batch size within the full run's budget."""
    steps = price(FULL_BATCH) * FULL / FULL_BATCH / price(batch_size)
    return math.floor(steps) * batch_size


class Probe:
    """The runs of a probe, nearly as `batchopt.probe` lays them out: all rates are searched, two are cooled down."""

    def __init__(self, world: World, budget: int, seed: int) -> None:
        self.world, self.budget, self.rng = world, budget, np.random.default_rng(seed)
        self.branches: list[Branch] = []
        self.noise_scales: list[NoiseScale] = []
        self.sizes = choose_batch_sizes(budget, price_of(0.0), bounds=(1, 2**20), population=2**40)
        self.warmup = warmup_within(short_run_budget(budget), price_of(0.0), self.sizes)

    def report(self) -> ProbeReport:
        """Make the runs."""
        short, searched = short_run_budget(self.budget), search_budget(self.budget)
        top = 2.0 / self.world.curvatures[0]
        rates = [top / SEARCH_FACTOR ** (1 + k) for k in range(RATES + EXTRA_RATES)]
        found = min(rates, key=lambda rate: self.run(self.sizes.search, rate, searched))
        self.read(self.sizes.search, found, searched)
        longest = []
        for size in (self.sizes.small, self.sizes.large):
            middle = found * (size / self.sizes.search) ** RATE_EXPONENT
            tried = [middle * FINE_FACTOR**k for k in range(-(FINE_RATES // 2), FINE_RATES // 2 + 1)]
            ended = {rate: self.run(size, rate, short) for rate in tried}
            for _ in range(2):
                best = min(ended, key=lambda rate: ended[rate])
                if best not in (min(ended), max(ended)):
                    break
                beyond = best / FINE_FACTOR if best == min(ended) else best * FINE_FACTOR
                ended[beyond] = self.run(size, beyond, short)
            alive = sorted((rate for rate in ended if math.isfinite(ended[rate])), key=lambda rate: ended[rate])
            cooled = {rate: self.cooldown(size, rate, short, SHORT_COOLDOWN) for rate in alive[:COOLED_RATES]}
            rate = min(cooled, key=lambda each: cooled[each])
            if size == self.sizes.large:
                self.read(size, rate, short)
            longest.append((size, rate))
        long = short + 0.5 * SHARES["long runs"] * self.budget
        for size, rate in longest:
            self.run(size, rate, long)
            for part in LONG_COOLDOWNS:
                self.cooldown(size, rate, long, part)
        self.read(*longest[1], long)
        return ProbeReport(
            reference=None,
            branches=tuple(self.branches),
            noise_scales=tuple(self.noise_scales),
            step_cost=None,
            spending=(),
            budget_examples=self.budget,
            stopped=None,
            provenance=Provenance({}, "cpu", 0, 2**40, MODES, adaptive=False),
            initial_loss=self.world.initial_loss,
        )

    def _schedule(self, decay: tuple[int, int] | None = None) -> LearningRateSchedule:
        knots = {0: 0.0, self.warmup: 1.0}
        if decay is not None:
            knots |= {decay[0]: 1.0, decay[1]: 0.0}
        return LearningRateSchedule(tuple(knots), tuple(knots.values()))

    def run(self, size: int, rate: float, examples: float) -> float:
        """A run at a constant rate; its last loss."""
        end = math.floor(examples / size) * size
        points = np.unique(np.round(np.geomspace(2 * size, end, 14) / size).astype(int) * size)
        losses, _ = self.world.run(size, rate, self._schedule(), points)
        return self._keep(size, rate, points, losses, self._schedule())

    def cooldown(self, size: int, rate: float, examples: float, part: float) -> float:
        """Off the end of a run; its last loss."""
        begin = math.floor(examples / size) * size
        end = begin + max(LEAST_COOLDOWN_STEPS, round(part * begin / size)) * size
        schedule = self._schedule((begin, end))
        points = np.unique(np.round(np.linspace(begin, end, 5)[1:] / size).astype(int) * size)
        losses, _ = self.world.run(size, rate, schedule, points)
        return self._keep(size, rate, points, losses, schedule)

    def _keep(
        self, size: int, rate: float, points: np.ndarray, losses: Sequence[float], schedule: LearningRateSchedule
    ) -> float:
        fine = [k for k, loss in enumerate(losses) if math.isfinite(loss)]
        diverged = len(fine) < len(losses) or losses[-1] > HOPELESS * self.world.initial_loss
        scatter = math.exp(SCATTER * self.rng.standard_normal())
        curve = LossCurve(tuple(int(points[k]) for k in fine), tuple(losses[k] * scatter for k in fine))
        branch = Branch(
            size, rate, curve, "diverged" if diverged else "finished", seed=0, learning_rate_schedule=schedule
        )
        self.branches = [
            each for each in self.branches
            if (each.batch_size, each.learning_rate, each.learning_rate_schedule) != (size, rate, schedule)
        ]  # fmt: skip
        self.branches.append(branch)
        return math.inf if diverged else losses[-1] * scatter

    def read(self, size: int, rate: float, examples: float) -> None:
        """The noise scale at the end of a run."""
        losses, squares = self.world.run(size, rate, self._schedule(), [examples])
        value = self.world.noise_scale(squares) * math.exp(READING_ERROR * self.rng.standard_normal())
        at = MeasuredAt(round(examples), losses[0], size, rate)
        estimate = log_normal(value, READING_ERROR)
        self.noise_scales.append(NoiseScale("simple", 1.0, value, estimate, 1_000, 1, None, "exact", "width", at))


def rows_of(name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What probes of one world predict of the full run, beside the truth."""
    world = World.of(name)
    truth = Truth.of(world)
    return [row_of(name, world, truth, part, seed) for part in PARTS for seed in seeds]


def row_of(name: str, world: World, truth: Truth, part: float, seed: int) -> dict[str, Any]:
    """Of one probe."""
    row: dict[str, Any] = {"world": name, "part": part, "seed": seed, "loss": truth.loss}
    row["critical_batch_size"] = truth.critical_batch_size
    probe = Probe(world, round(part * FULL), seed)
    report = probe.report()
    forecast, without = Forecast.fit(report), Forecast.fit(replace(report, noise_scales=()))
    row |= {"batch_sizes": [probe.sizes.small, probe.sizes.large], "lowest_observed": forecast.lowest_observed_loss}
    try:
        row["predicted"] = interval_of(forecast.critical_batch_size(truth.loss))
    except BatchoptError as error:
        row |= {"predicted": None, "failure": str(error)}
    best = min((b for b in probe.branches if b.outcome == "finished"), key=lambda branch: branch.curve.losses[-1])
    row["plans"] = {
        label: {
            **plan_of(world, truth.lowest[label], forecast, best, price),
            "above_without_noise_scales": plan_of(world, truth.lowest[label], without, best, price)["above"],
        }
        for label, price in PRICES.items()
    }
    return row


def plan_of(world: World, lowest: float, forecast: Forecast, best: Branch, price: StepCost) -> dict[str, Any]:
    """The plan for the full run's budget, and where it ends; also where the setting of the best short run does."""
    goal = LowestLoss(price(FULL_BATCH) * FULL / FULL_BATCH, price)
    plan = forecast.plan(goal)
    end = world.end(plan.batch_size, plan.learning_rate, plan.horizon, plan.learning_rate_schedule)
    as_probed = world.end(best.batch_size, best.learning_rate, budgeted(best.batch_size, price))
    return {
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "loss": end if math.isfinite(end) else None,
        "predicted": interval_of(plan.loss),
        "lowest": lowest,
        "above": above_of(end, lowest),
        "above_as_probed": above_of(as_probed, lowest),
    }


def above_of(loss: float, lowest: float) -> float | None:
    """By which share of what can be learned a loss is above the lowest; None where the run diverged."""
    return (loss - lowest) / (lowest - FLOOR) if math.isfinite(loss) else None


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By part of the full run."""
    found = {}
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        told = [row for row in own if row["predicted"] is not None]
        plans = [plan for row in own for plan in row["plans"].values()]
        ended = [plan for plan in plans if plan["loss"] is not None]
        keys = ("above", "above_without_noise_scales", "above_as_probed")
        above = {key: [math.inf if p[key] is None else p[key] for p in plans] for key in keys}
        errors = [abs(math.log(plan["predicted"][0] / plan["loss"])) for plan in ended]
        found[str(part)] = {
            "forecasts": len(own),
            "critical_told": len(told),
            "critical_error": geometric_mean([factor(row["predicted"][0], row["critical_batch_size"]) for row in told]),
            "critical_inside": share([is_inside(row["predicted"], row["critical_batch_size"]) for row in told]),
            "plans": len(plans),
            "diverged": len(plans) - len(ended),
            **{key: [finite(q) for q in np.quantile(each, (0.5, 0.9), method="higher")] for key, each in above.items()},
            "loss_error_median": float(np.median(errors)) if errors else None,
            "loss_inside": share([is_inside(plan["predicted"], plan["loss"]) for plan in ended]),
        }
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    args = parser.parse_args()
    found = Parallel(n_jobs=args.workers)(delayed(rows_of)(name, args.seeds) for name in args.worlds)
    rows = [row for each in found for row in each]
    figures, prices = summary(rows), [price_of_probe(part) for part in (1.0, *PARTS)]
    language = language_rows()
    found = {"rows": rows, "summary": figures, "language_models": language, "prices": prices}
    save(args.output, {"machine": machine(), **found})
    for row in rows:
        print(_line(row))
    for part, each in figures.items():
        print(part, each)
    for row in language:
        law, kept = (f"{100.0 * row[key]['regret']:.2f} %" for key in ("law", "best_of_shortest"))
        print(f"{row['parameters'] / 1e6:.0f}M, {row['times_longer']:.1f} times longer: {law}, kept as it was {kept}")
    for price in prices:
        print(price)


def _line(row: dict[str, Any]) -> str:
    told = "-" if row["predicted"] is None else " ".join("inf" if x is None else f"{x:.0f}" for x in row["predicted"])
    plans = [
        f"batch {plan['batch_size']} rate {plan['learning_rate']:.3g} ends at {plan['loss'] or math.inf:.4f}, "
        f"predicted {plan['predicted'][0]:.4f}, lowest {plan['lowest']:.4f}"
        for plan in row["plans"].values()
    ]
    return (
        f"{row['world']:7} {row['part']:<6} critical {row['critical_batch_size']:.0f}, told {told}; {'; '.join(plans)}"
    )


if __name__ == "__main__":
    main()
