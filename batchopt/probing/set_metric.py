"""Metrics of all evaluated examples together: those that are no mean over examples, as F1 is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from batchopt.errors import TaskError
from batchopt.probing.losses import Batch, Metric


@dataclass(frozen=True, slots=True)
class SetMetric:
    """A metric of a whole set.

    Attributes:
        read: (model, batch) -> what is kept of a batch. Metrics with the same function share what it gives.
        value: what was kept of all batches, in order -> the metric; where `together` is given, what that makes of it.
        together: what was kept of all batches, in order -> what `value` reads. Metrics with the same function, and the
            same `read`, share what it gives: it is called once for all of them.
    """

    read: Callable[[nn.Module, Batch], Any]
    value: Callable[[Any], float]
    together: Callable[[Sequence[Any]], Any] | None = None

    def of(self, name: str, found: Any) -> float:
        """The metric, checked, of what `value` reads.

        Raises:
            TaskError: it is no number.
        """
        value = self.value(found)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TaskError(f"metric {name!r} must be a number, got a {type(value).__name__}") from None


def n_passes(metrics: Mapping[str, Metric | SetMetric]) -> int:
    """How many forward passes metrics take beside that of the loss."""
    return len({metric.read if isinstance(metric, SetMetric) else name for name, metric in metrics.items()})


class Kept:
    """What set metrics keep of the batches of one evaluation.

    Args:
        metrics: by name, of both kinds; others are left alone.
    """

    def __init__(self, metrics: Mapping[str, Metric | SetMetric]) -> None:
        self._metrics = {name: metric for name, metric in metrics.items() if isinstance(metric, SetMetric)}
        self._kept: dict[Callable[..., Any], list[Any]] = {metric.read: [] for metric in self._metrics.values()}

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Read a batch."""
        for read, kept in self._kept.items():
            kept.append(read(model, batch))

    @property
    def values(self) -> dict[str, float]:
        """Of every metric; NaN where nothing was read."""
        found: dict[tuple[Callable[..., Any], Callable[..., Any] | None], Any] = {}
        values = {}
        for name, metric in self._metrics.items():
            kept, source = self._kept[metric.read], (metric.read, metric.together)
            if kept and source not in found:
                found[source] = kept if metric.together is None else metric.together(kept)
            values[name] = metric.of(name, found[source]) if kept else math.nan
        return values
