"""Probes whose task has a prior: a batch size and a learning rate that its user believes to work.

The prior is the best peak rate of the sweep at batch size 32 for the loss before the last, times a factor that is even
in logarithm from a third to three. What forecasts make of these probes:

    python benchmarks/prior_probes.py
    python benchmarks/prediction.py --shares 0.1 0.3 1 --seeds 10 11 12 --live --kept-probes
        --probes benchmarks/out/probes_with_priors --forecasts benchmarks/out/forecasts_with_priors.jsonl
        --output benchmarks/results/prediction_with_priors.json
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from prediction import DEFAULT_BATCH, GOALS
from truth.decayed import decayed_sweep_of, has_decays
from truth.problems import PROBLEMS, make
from truth.tradeoff import sweep_of

from batchopt import probe
from batchopt.errors import BatchoptError

FOLDER = Path(__file__).parent / "out" / "probes_with_priors"
SPREAD = 3.0
"""The prior's rate is within this factor of the best: what people know of a training that they have run before."""


def prior_of(name: str, seed: int) -> tuple[int, float]:
    """A setting that a user of the problem may know."""
    sweep = decayed_sweep_of(name)
    size = min(max(DEFAULT_BATCH, sweep.batch_sizes[0]), sweep.batch_sizes[-1])
    best = sweep.cheapest(PROBLEMS[name].losses[-2], GOALS["seconds at 64 + B"], size).learning_rate
    off = np.random.default_rng([zlib.crc32(name.encode()), seed]).uniform(-1.0, 1.0)
    return size, float(best * SPREAD**off)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    swept = [name for name in PROBLEMS if has_decays(name)]
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--shares", nargs="+", type=float, default=(0.1, 0.3))
    parser.add_argument("--seeds", nargs="+", type=int, default=(10, 11, 12))
    parser.add_argument("--probes", type=Path, default=FOLDER, help="where probes are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.probes.mkdir(parents=True, exist_ok=True)
    for share in args.shares:
        for seed in args.seeds:
            for name in args.problems:
                path = args.probes / f"{name}-{share:g}-{seed}.json"
                if path.exists():
                    continue
                task, budget = (
                    replace(make(name)[0], prior=prior_of(name, seed)),
                    share * sweep_of(name).fewest_examples,
                )
                try:
                    report = probe(task, examples=round(budget), seed=seed)
                except BatchoptError as error:
                    print(f"{path.stem}: {error}", flush=True)
                    continue
                report.save(path)
                print(f"{path.stem}: {'; '.join(report.notes) or 'kept'}", flush=True)


if __name__ == "__main__":
    main()
