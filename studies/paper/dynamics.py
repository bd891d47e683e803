"""Claims of McCandlish et al. 2018 on MNIST under SGD: temperature (appendix C), model size, adaptive batches (D).

    BATCHOPT_DATA=... python studies/paper/dynamics.py --workers 2

trains some hundred small networks and writes studies/paper/dynamics.json, which figures.py draws. Runs are kept in
studies/paper/out/ as they end, and the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import nn

from batchopt import TrainingTask
from batchopt.cli.task_file import load_task
from batchopt.errors import NonFiniteLossError
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun

HERE = Path(__file__).parent
Noise = tuple[tuple[float, float], ...]
"""(loss, noise scale) along a run."""
LEVELS = (1.0, 0.5, 0.25, 0.12)
"""Losses at which noise scales are read."""
LAST = 0.12
TEMPERATURES = ((0.2, 64), (0.1, 64), (0.05, 64), (0.025, 64), (0.0125, 64), (0.2, 256), (0.2, 1024), (0.05, 16))
"""(learning rate, batch size): their ratio from 1/320 to 1/5,120, and the same ratio at several batch sizes."""
WIDTHS = (16, 32, 64, 128, 256)
SEEDS = (0, 1)
CONSTANT = (16, 32, 64, 128, 256, 512)
BALANCES = (1.0, 8.0, 64.0, 512.0)
"""r of the adaptive batch sqrt(r B_noise), in examples: what a step is worth."""
HIGHEST = (0.4, 0.8, 1.6, 3.2)
"""eps_max of the rate eps_max / (1 + B_noise / B)."""
MOST_STEPS, MOST_EXAMPLES = 6_000, 400_000


@cache
def mnist() -> TrainingTask:
    """The task of studies/mnist."""
    return load_task(f"{HERE.parent / 'mnist' / 'problem.py'}:task")


def network(width: int) -> nn.Module:
    """Two strided convolutions and a hidden layer; 64 is the network of studies/mnist."""
    inner, outer = width // 8, width // 4
    return nn.Sequential(
        nn.Conv2d(1, inner, 5, stride=2), nn.ReLU(), nn.Conv2d(inner, outer, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * outer, width), nn.ReLU(), nn.Linear(width, 10),
    )  # fmt: skip


def crossings(run: TrainingRun, next_step: Callable[[TrainingRun, float], tuple[int, float]]) -> Iterator[float]:
    """Train, and give each loss level when the mean of the last 1,024 examples has reached it.

    Args:
        run: at its beginning.
        next_step: (run, loss so far) -> batch size and learning rate of the next step.
    """
    levels, recent = list(LEVELS), [(run.evaluate(), 1_024)]
    while levels and run.steps < MOST_STEPS and run.examples_seen < MOST_EXAMPLES:
        counts = np.array([count for _, count in recent], float)
        loss = float(np.dot([value for value, _ in recent], counts) / counts.sum())
        while levels and loss <= levels[0]:
            yield levels.pop(0)
        size, run.learning_rate = next_step(run, loss)
        recent.append((run.step(size), size))
        while sum(count for _, count in recent[1:]) >= 1_024:
            recent.pop(0)


def read_noise(task: TrainingTask, rate: float, size: int, seed: int) -> list[dict[str, float]]:
    """Noise scales of a run at a constant rate."""
    run = TrainingRun(task, learning_rate=rate, seed=seed)
    readings = []
    for level in crossings(run, lambda *_: (size, rate)):
        found = measure_run(run, relative_width=0.2, max_examples=20_000, seed=seed).batch_size
        readings.append({"loss": level, "noise_scale": found.value, "low": found.low, "high": found.high,
                         "examples": run.examples_seen, "steps": run.steps})  # fmt: skip
    return readings


def temperature(rate: float, size: int, seed: int) -> dict[str, Any]:
    """A run of the network of studies/mnist."""
    return {"rate": rate, "size": size, "seed": seed, "readings": read_noise(mnist(), rate, size, seed)}


def model_size(width: int, seed: int) -> dict[str, Any]:
    """A run of a network of another width, at the same rate and batch size."""
    task = replace(mnist(), model=partial(network, width))
    parameters = sum(parameter.numel() for parameter in network(width).parameters())
    return {"width": width, "parameters": parameters, "seed": seed, "readings": read_noise(task, 0.1, 64, seed)}


def adaptive(kind: str, value: float, highest: float, seed: int, noise: Noise) -> dict[str, Any]:
    """Steps and examples to the last loss with a constant batch size, or with sqrt(r B_noise) by the loss so far.

    Args:
        kind: "constant" or "adaptive".
        value: the batch size, or r.
        highest: of the learning rate, at an infinite batch.
        seed: of the run.
        noise: (loss, noise scale) along a run.
    """
    losses, scales = (np.log(each) for each in zip(*sorted(noise), strict=True))

    def next_step(run: TrainingRun, loss: float) -> tuple[int, float]:
        scale = math.exp(float(np.interp(math.log(loss), losses, scales)))
        size = round(value) if kind == "constant" else max(1, round(math.sqrt(value * scale)))
        return size, highest / (1.0 + scale / size)

    run = TrainingRun(mnist(), learning_rate=highest, seed=seed)
    told: dict[str, Any] = {"kind": kind, "value": value, "highest": highest, "seed": seed}
    told |= {"examples": None, "steps": None}
    try:
        for level in crossings(run, next_step):
            if level == LAST:
                told |= {"examples": run.examples_seen, "steps": run.steps}
    except NonFiniteLossError:
        pass
    return told


def work() -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """What is run, in an order in which the last part knows what the first ones found."""
    yield "temperature", [(*setting, seed) for seed in SEEDS for setting in TEMPERATURES]
    yield "model_size", [(width, seed) for seed in SEEDS for width in WIDTHS]
    yield (
        "adaptive",
        [
            (kind, value, highest, seed)
            for seed in SEEDS
            for kind, values in (("constant", CONSTANT), ("adaptive", BALANCES))
            for value in values
            for highest in HIGHEST
        ],
    )


def one(name: str, arguments: tuple[Any, ...], noise: Noise) -> dict[str, Any]:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    if name == "adaptive":
        return adaptive(*arguments, noise)
    return {"temperature": temperature, "model_size": model_size}[name](*arguments)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, settings in work():
        path = HERE / "out" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows, done = [row["row"] for row in kept], [tuple(row["arguments"]) for row in kept]
        missing = [each for each in settings if each not in done]
        noise = usual_noise(found["temperature"]) if name == "adaptive" else ()
        parallel = Parallel(n_jobs=args.workers, return_as="generator")
        for each, row in zip(missing, parallel(delayed(one)(name, each, noise) for each in missing), strict=True):
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps({"arguments": each, "row": row}) + "\n")
            print(name, each, file=sys.stderr)
        found[name] = rows
    (HERE / "dynamics.json").write_text(json.dumps(found, indent=1) + "\n")


def usual_noise(rows: list[dict[str, Any]]) -> Noise:
    """(loss, noise scale) of the runs at a batch of 64 and a rate of 0.1, means of logs over seeds."""
    own = [reading for row in rows if (row["rate"], row["size"]) == (0.1, 64) for reading in row["readings"]]
    return tuple(
        (level, math.exp(np.mean([math.log(each["noise_scale"]) for each in own if each["loss"] == level])))
        for level in LEVELS
        if any(each["loss"] == level for each in own)
    )


if __name__ == "__main__":
    main()
