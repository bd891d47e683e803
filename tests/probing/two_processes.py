"""Noise scales as each process of a test measures them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchopt.probing.measure import measure_noise_scale

SCENARIOS = ["examples", "weights", "groups", "coupled", "few", "stream", "one fails"]


def cross_entropy(model: Any, batch: Any) -> Tensor:
    assert not isinstance(model, DistributedDataParallel)
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weighted(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return cross_entropy(model, batch), 0.5 + batch[0][:, 0].abs()


def classification(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def mlp(*, normalised: bool = False) -> nn.Module:
    torch.manual_seed(11)
    between: nn.Module = nn.BatchNorm1d(8) if normalised else nn.Tanh()
    return nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 3)).double()


class Stream:
    """Batches of a data set, every `count`-th from `rank` on; one that is alone reads all."""

    def __init__(self, rank: int, count: int, *, fails: bool = False) -> None:
        self.rank, self.count, self.fails = rank, count, fails

    def __iter__(self) -> Iterator[Any]:
        x, y = classification(7 * 16)
        if self.fails:
            raise OSError("the disk is gone")
        for begin in range(16 * self.rank, len(x), 16 * self.count):
            yield x[begin : begin + 16], y[begin : begin + 16]


def measure(scenario: str, rank: int, count: int) -> str:
    if scenario == "stream":
        return measure_noise_scale(mlp(), cross_entropy, Stream(rank, count), relative_width=0.01).to_json()
    if scenario == "one fails":
        data = Stream(rank, count, fails=rank == 1)
        return measure_noise_scale(mlp(), cross_entropy, data).to_json()
    model = mlp(normalised=scenario == "coupled")
    if count > 1:
        model = DistributedDataParallel(model)
    settings: dict[str, Any] = {
        "examples": {},
        "weights": {"loss": weighted},
        "groups": {"group_size": 5},
        "coupled": {"group_size": 4},
        "few": {"max_examples": 3},
    }[scenario]
    arguments = {"loss": cross_entropy, "relative_width": 0.01, **settings}
    # 301 examples: some shares are unequal, and the last one or two leave a process with nothing.
    return measure_noise_scale(model, data=classification(301), **arguments).to_json()


def answers(folder: Path) -> dict[str, Any]:
    """What this process returns, by scenario."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {}
    for scenario in SCENARIOS:
        try:
            found[scenario] = json.loads(measure(scenario, rank, count))
        except Exception as error:
            found[scenario] = f"{type(error).__name__}: {error}"
    return found
