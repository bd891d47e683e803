"""Do the 90 % intervals of a measured noise scale hold the truth?

Gradients of populations with a known noise scale go through the same code as those of a model: the accumulator of
group sums, the estimator, and in the adaptive cells the stopping rule. Run `python benchmarks/interval_coverage.py`.
Cells that are done are kept and not run again, unless the code that they tested has changed; `--quick` runs few
repetitions and keeps nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import populations
import torch
from machine import machine, save
from populations import Population, along_the_gradient, few_dimensions, heavy_tailed, isotropic

import batchopt.noise_interval
import batchopt.noise_scale
import batchopt.probing.moments
import batchopt.probing.stopping
from batchopt.noise_scale import SignalAndNoise, noise_scale_of
from batchopt.probing.moments import GROUPS_BYTES, MANY_GROUPS, MomentAccumulator
from batchopt.probing.stopping import FIRST_LOOK, collect_until_narrow

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
REPETITIONS = 500
NORMAL = 1.6449
"""Standard deviations from the middle of a normal distribution to the ends of its central 90 %."""

COVERED = (0.86, 0.96)
"""Target with at least four noise scales' worth of examples."""
COVERED_FEW = 0.80
"""With fewer."""
UNRESOLVED = (0.93, 0.98)
"""Target without signal."""
WIDEST = 1.15
"""Median log-width of resolved readings, in `2 NORMAL` standard deviations of the pooled estimator's logarithm."""
TESTED = (
    batchopt.noise_scale,
    batchopt.noise_interval,
    batchopt.probing.moments,
    batchopt.probing.stopping,
    populations,
)


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        population: what is drawn from.
        examples: measured; the most of them where `relative_width` is given.
        relative_width: of the stopping rule; None measures all `examples`.
        few_groups: whether as few groups are kept as for a very large model.
    """

    population: Population
    examples: int
    relative_width: float | None = None
    few_groups: bool = False

    @property
    def name(self) -> str:
        """Tells the cell from all others."""
        words = [self.population.name, f"B {self.population.noise_scale:g}", f"n {self.examples}"]
        if self.population.size is not None:
            words.append(f"of {self.population.size}")
        if self.relative_width is not None:
            words.append(f"until {self.relative_width:g}")
        return ", ".join(words)


@dataclass(frozen=True)
class Repetition:
    """One measurement, and what was to be found."""

    reading: SignalAndNoise
    truth: float
    examples: int
    narrow: bool

    @property
    def covered(self) -> bool:
        """Whether the interval holds the truth; of an unresolved one, whether the truth lies above its bound."""
        interval, rounding = self.reading.batch_size, 1e-9
        return interval.low * (1 - rounding) <= self.truth <= interval.high * (1 + rounding)


def cells() -> Iterator[Cell]:
    """All cells, the quick ones first."""
    shapes = (isotropic, few_dimensions, along_the_gradient)
    for make, noise_scale in [(make, b) for b in (64, 1_000) for make in shapes]:
        yield from _by_examples(make(noise_scale))
    yield from _by_examples(isotropic(30_000))
    for noise_scale in (64, 500):
        yield from _by_examples(heavy_tailed(noise_scale, "student"))
    yield from _by_examples(heavy_tailed(64, "lognormal"))
    yield from _by_examples(replace(isotropic(64, 50), name="weighted", weighted=True))
    yield from _by_examples(replace(isotropic(1_000), name="groups of 16", group_size=16))
    for make in shapes:
        yield from _by_examples(replace(make(64), name=f"{make(64).name}, 16 group sums"), few_groups=True)
    for make, noise_scale in [(make, b) for b in (64, 400) for make in (isotropic, few_dimensions)]:
        for examples in (noise_scale, 250, 500, 750, 1_000):
            yield Cell(replace(make(noise_scale), size=1_000), examples)
    for make in (*shapes, lambda b: heavy_tailed(b, "student")):
        for examples in (16, 128, 1_024):
            yield Cell(make(math.inf), examples)
    yield from _adaptive(shapes)


def _by_examples(population: Population, *, few_groups: bool = False) -> Iterator[Cell]:
    for ratio in (0.25, 1, 4, 10, 40):
        yield Cell(population, round(ratio * population.noise_scale), few_groups=few_groups)


def _adaptive(shapes: Any) -> Iterator[Cell]:
    for make in (*shapes, lambda b: heavy_tailed(b, "student")):
        for noise_scale in (64, 1_000):
            for width in (0.3, 0.7):
                yield Cell(make(noise_scale), 50_000, relative_width=width)
    yield Cell(replace(isotropic(300), size=2_000), 2_000, relative_width=0.3)
    yield Cell(isotropic(math.inf), 20_000, relative_width=0.7)
    yield Cell(few_dimensions(math.inf), 20_000, relative_width=0.7)


def repeat(cell: Cell, rng: np.random.Generator) -> Repetition:
    """One measurement of a cell, as `measure_noise_scale` does it."""
    size = cell.population.group_size
    source, units = cell.population.source(rng), cell.examples // size
    accumulator = MomentAccumulator(
        quota=max(1, min(units, FIRST_LOOK // size) // 16),
        group_size=size,
        gradient_bytes=GROUPS_BYTES if cell.few_groups else GROUPS_BYTES // MANY_GROUPS,
    )

    def read(missing: int) -> Any:
        wanted = min(missing, units - accumulator.units)
        return source.take(wanted) if wanted else None

    narrow = False
    if cell.relative_width is None:
        while (sums := read(accumulator.missing)) is not None:
            accumulator.add(sums)
    else:
        narrow = collect_until_narrow(
            read, accumulator, group_size=size, population=source.size, relative_width=cell.relative_width
        )
    reading = noise_scale_of(accumulator.moments(source.size))
    return Repetition(reading, source.truth, accumulator.units * size, narrow)


def summary(cell: Cell, repetitions: list[Repetition]) -> dict[str, Any]:
    """The cell's row; JSON types only."""
    intervals = [repetition.reading.batch_size for repetition in repetitions]
    resolved = [interval for interval in intervals if interval.resolved]
    positive = [r for r in repetitions if r.reading.signal > 0]
    errors = (
        np.array([math.log(r.reading.noise / r.reading.signal / r.truth) for r in positive]) if _known(cell) else []
    )
    deviation = float(np.std(errors)) if len(errors) > 1 else None
    width = float(np.median([math.log(r.high / r.low) for r in resolved])) if len(resolved) >= 20 else None
    exact = all(repetition.examples == cell.population.size for repetition in repetitions)
    row = {
        "name": cell.name,
        "population": cell.population.name,
        "noise_scale": cell.population.noise_scale if _known(cell) else None,
        "rho": cell.population.rho,
        "d_eff": cell.population.d_eff,
        "population_size": cell.population.size,
        "examples": float(np.median([repetition.examples for repetition in repetitions])),
        "relative_width": cell.relative_width,
        "stopped_by_width": float(np.mean([repetition.narrow for repetition in repetitions])),
        "repetitions": len(repetitions),
        "resolved": len(resolved) / len(repetitions),
        "covered": float(np.mean([r.covered for r in repetitions])) if _known(cell) else None,
        "log_deviation": deviation,
        "width_ratio": width / (2 * NORMAL * deviation) if width and deviation and not exact else None,
    }
    return row | {"target": target(row, exact=exact)}


def target(row: dict[str, Any], *, exact: bool = False) -> str:
    """What the row misses; empty where it misses nothing."""
    missed = []
    if row["noise_scale"] is None:
        if not UNRESOLVED[0] <= 1 - row["resolved"] <= UNRESOLVED[1]:
            missed.append("resolved")
        return ", ".join(missed)
    many = row["examples"] >= 4 * row["noise_scale"]
    lowest, highest = COVERED if many and not exact else (1.0 if exact else COVERED_FEW, 1.0)
    if not lowest <= row["covered"] <= highest:
        missed.append("coverage")
    if row["width_ratio"] is not None and row["width_ratio"] > WIDEST:
        missed.append("width")
    return ", ".join(missed)


def _known(cell: Cell) -> bool:
    return math.isfinite(cell.population.noise_scale)


def line(row: dict[str, Any]) -> str:
    """The row of the table."""
    covered = "" if row["covered"] is None else f"{row['covered']:.1%}"
    width = "" if row["width_ratio"] is None else f"{row['width_ratio']:.2f}"
    missed = f"  misses {row['target']}" if row["target"] else ""
    words = f"{row['name']:52s} n {row['examples']:8.0f}  covered {covered:6s}"
    return f"{words}  unresolved {1 - row['resolved']:6.1%}  width {width:4s}{missed}"


def fingerprint() -> str:
    """Of the code that a kept row depends on."""
    sources = [inspect.getsource(module) for module in TESTED] + [Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:16]


def kept_rows(path: Path, repetitions: int) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run of the same code, by name."""
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    if (result["fingerprint"], result["repetitions"]) != (fingerprint(), repetitions):
        return {}
    return {row["name"]: row for row in result["rows"]}


def run(path: Path | None, *, repetitions: int, only: str = "", seed: int = 0) -> list[dict[str, Any]]:
    """All rows, printed as they come.

    Args:
        path: where they are kept; None keeps nothing.
        repetitions: of every cell.
        only: part of the names of the cells to run.
        seed: of everything that is drawn.
    """
    head = {"fingerprint": fingerprint(), "repetitions": repetitions, "machine": machine()}
    kept = {} if path is None else kept_rows(path, repetitions)
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for cell in cells():
        if only not in cell.name:
            continue
        row = kept.pop(cell.name, None)
        if row is None:
            rng = np.random.default_rng([seed, zlib.crc32(cell.name.encode())])
            row = summary(cell, [repeat(cell, rng) for _ in range(repetitions)])
        rows.append(row)
        print(f"{time.perf_counter() - started:5.0f} s  {line(row)}", flush=True)
        if path is not None:
            save(path, head | {"rows": rows + list(kept.values())})
    missed = sum(bool(row["target"]) for row in rows)
    print(f"{len(rows)} cells, {missed} miss a target")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 repetitions, nothing kept")
    parser.add_argument("--only", default="", help="cells whose name holds this text, nothing kept")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repetitions = 100 if arguments.quick else arguments.repetitions
    keep = None if arguments.quick or arguments.only else arguments.result
    run(keep, repetitions=repetitions, only=arguments.only)


if __name__ == "__main__":
    main()
