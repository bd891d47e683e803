"""How much of a probe's wall clock is spent outside training steps, on a task of some milliseconds a step.

A probe of a multilayer perceptron on made-up data, each step counting for 64 examples more. Time is what
`perf_counter` shows around every training step, evaluation, reading of the noise scale and forward pass of the
learning-rate range; the rest is what the probe itself takes: models that are made anew, snapshots, the journal. A
training step is taken before, at which torch imports what any training needs.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import machine, save
from torch import nn

from batchopt import TrainingTask, probe
from batchopt.probing import long_runs
from batchopt.probing.run import TrainingRun

RESULT = Path(__file__).parent / "results" / "probe_overhead.json"
WIDTH, INPUTS, CLASSES, POPULATION = 512, 256, 10, 8192
EXAMPLES, PER_STEP = 400_000, 64.0
SEEDS = (0, 1, 2)
TIMED = {
    "training steps": (TrainingRun, "step"),
    "evaluations": (TrainingRun, "evaluation"),
    "losses of the untrained model": (TrainingRun, "batch_loss"),
    "noise scales": (long_runs, "measure_run"),
}


def task() -> TrainingTask:
    """A perceptron with three layers; a step at batch size 64 takes 2 ms on a core of 2025."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(POPULATION, INPUTS, generator=generator)
    y = (x @ torch.randn(INPUTS, CLASSES, generator=generator)).argmax(dim=1)

    def model() -> nn.Module:
        layers = nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
        return nn.Sequential(*layers)

    return TrainingTask(
        model=model,
        data=(x, y),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        device="cpu",
    )


def measured(seed: int) -> dict[str, Any]:
    """One probe: seconds by what they were spent on."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **keywords)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    patches = [
        patch.object(owner, attribute, timed(name, getattr(owner, attribute)))
        for name, (owner, attribute) in TIMED.items()
    ]
    for each in patches:
        each.start()
    began = time.perf_counter()
    report = probe(task(), examples=EXAMPLES, per_step=PER_STEP, seed=seed)
    total = time.perf_counter() - began
    for each in patches:
        each.stop()
    assert report.stopped is None, report.stopped
    shares = {name: spent[name] / total for name in TIMED}
    return {
        "seed": seed,
        "seconds": total,
        "steps": report.steps_spent,
        "milliseconds_of_step": 1e3 * spent["training steps"] / report.steps_spent,
        "shares": {**shares, "everything else": 1.0 - sum(shares.values())},
        "outside_training": 1.0 - shares["training steps"],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    TrainingRun(task(), learning_rate=0.01, seed=0).step(64)
    rows = [measured(seed) for seed in SEEDS]
    save(args.output, {"machine": machine(), "rows": rows})
    for row in rows:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items())
        steps = f"{row['steps']} steps of {row['milliseconds_of_step']:.2f} ms"
        print(f"seed {row['seed']}: {row['seconds']:.1f} s, {steps}; {shares}")


if __name__ == "__main__":
    main()
