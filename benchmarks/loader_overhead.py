"""Time per batch of `scheduled_loader` beside torch's own DataLoader, over the same data with the same workers.

Passes of both take turns; what is compared is the median of the pairs' ratios. A schedule whose batch size is constant
is compared with the loader of that batch size; one that switches, with a loader whose batch sampler gives lists of the
same lengths, made beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, save
from torch.utils.data import DataLoader, Dataset, TensorDataset

from batchopt import Schedule, Segment, scheduled_loader

RESULT = Path(__file__).parent / "results" / "loader_overhead.json"
TARGET = 1.05
EXAMPLES = 16_384
"""Of one epoch, which a run is: torch's loader begins its epochs anew."""
PIXELS = 28 * 28


class Images(Dataset[Any]):
    """Examples that take a little work each, as decoded and normalised images do."""

    def __init__(self) -> None:
        self._pixels = torch.randint(0, 256, (EXAMPLES, PIXELS), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._pixels[index].float().div(255.0).sub(0.5), index % 10


def tensors() -> TensorDataset:
    """Rows of tensors, one by one."""
    return TensorDataset(torch.randn(EXAMPLES, 64), torch.arange(EXAMPLES))


def passes(data: Dataset[Any], schedule: Schedule, workers: int, ours: bool) -> Callable[[], Iterable[Any]]:
    """A loader of one pass over the run."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if ours:
        loader = scheduled_loader(data, schedule, seed=0, **options)
        return lambda: loader
    order = torch.randperm(EXAMPLES).numpy()
    lists = [order[seen : seen + size].tolist() for seen, size in schedule.batches()]
    loader = DataLoader(data, batch_sampler=lists, **options)
    if len(schedule.segments) == 1:
        loader = DataLoader(data, batch_size=schedule.segments[0].batch_size, shuffle=True, **options)
    return lambda: loader


def seconds_of(load: Callable[[], Iterable[Any]]) -> float:
    """Of one pass."""
    began = time.perf_counter()
    for _ in load():
        pass
    return time.perf_counter() - began


def compare(data: Dataset[Any], schedule: Schedule, workers: int, pairs: int) -> dict[str, Any]:
    """Both loaders in turns, the first pass of each left out."""
    ours, theirs = (passes(data, schedule, workers, who) for who in (True, False))
    seconds_of(ours), seconds_of(theirs)
    times = np.array([(seconds_of(ours), seconds_of(theirs)) for _ in range(pairs)])
    ratios = times[:, 0] / times[:, 1]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {
        "ratio": float(np.median(ratios)),
        "quartiles": [float(low), float(high)],
        "microseconds a batch": [float(t / schedule.steps * 1e6) for t in np.median(times, axis=0)],
        "pairs": pairs,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="two pairs, to show that all works")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.quick:
        args.output = Path(__file__).parent / "out" / "quick_loader_overhead.json"
    torch.set_num_threads(1)
    schedules = {
        "32": Schedule.constant(32, examples=EXAMPLES),
        "256": Schedule.constant(256, examples=EXAMPLES),
        "32 to 256": Schedule((Segment(0, 32), Segment(4_096, 128), Segment(8_192, 256)), examples=EXAMPLES),
    }
    rows = []
    for name, make in (("rows of tensors", tensors), ("images", Images)):
        for size, schedule in schedules.items():
            for workers in (0, 2):
                found = compare(make(), schedule, workers, 2 if args.quick else args.pairs)
                rows.append({"data": name, "batch size": size, "workers": workers, **found})
                print(f"{name:16} batch {size:10} workers {workers}: {found['ratio']:.3f}", flush=True)
    worst = max(row["ratio"] for row in rows)
    print(f"largest ratio {worst:.3f} (target {TARGET})")
    save(args.output, {"machine": machine(), "target": TARGET, "largest ratio": worst, "rows": rows})


if __name__ == "__main__":
    main()
