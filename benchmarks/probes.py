"""Probes of the problems that were swept, kept as they end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from truth.problems import make
from truth.tradeoff import sweep_of

from batchopt import Forecast, probe
from batchopt.errors import BatchoptError, EvidenceError
from batchopt.evidence import ProbeReport

FOLDER = Path(__file__).parent / "out" / "probes"
SEEDS = (10, 11, 12, 13, 14)
"""Not those of the sweep: a probe must not run what the truth was taken from."""


class Probed(NamedTuple):
    """One probe: its report, or why there is none."""

    problem: str
    share: float
    seed: int
    report: ProbeReport | None
    failure: str | None


def probe_problem(name: str, share: float, seed: int, folder: Path) -> Probed:
    """Probe a problem, or read the report of a probe that was done before.

    Args:
        name: of the problem.
        share: of the fewest examples with which any constant configuration of the sweep reaches the last loss.
        seed: of the probe.
        folder: where reports are kept.
    """
    path = folder / f"{name}-{share:g}-{seed}.json"
    budget = round(share * sweep_of(name).fewest_examples)
    try:
        return Probed(name, share, seed, kept_probe(path, name, budget, seed), None)
    except BatchoptError as error:
        return Probed(name, share, seed, None, f"{type(error).__name__}: {error}")


def kept_probe(path: Path, name: str, budget: int, seed: int, *, per_step: float = 0.0) -> ProbeReport:
    """A probe of a problem, read where it was done before with the same budget.

    Raises:
        BatchoptError: it failed.
    """
    torch.set_num_threads(1)
    if path.exists() and (kept := ProbeReport.load(path)).budget_examples == budget:
        return kept
    report = probe(make(name)[0], examples=budget, per_step=per_step, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    report.save(path)
    return report


@cache
def forecast_of(name: str, share: float, seed: int, folder: Path, *, noise_scales: bool = True) -> Forecast:
    """The forecast of a probe, from its noise scales too unless told otherwise; fitted once in each process.

    Raises:
        BatchoptError: the probe failed, or tells too little.
    """
    probed = probe_problem(name, share, seed, folder)
    if probed.report is None:
        raise EvidenceError(f"the probe failed: {probed.failure}")
    return Forecast.fit(probed.report if noise_scales else replace(probed.report, noise_scales=()))
