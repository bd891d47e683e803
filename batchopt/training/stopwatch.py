"""Times of stretches of a step, without making a CUDA device wait for the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch

Mark = float | torch.cuda.Event
Span = tuple[Mark, Mark]
LATE = 64
"""So many times may be under way from the device; older ones are dropped."""


class Stopwatch:
    """Marks moments of a device's work, and passes on the times between them once they are known.

    Args:
        device: a CUDA device is timed by events in its own queue; any other by the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._waiting: deque[tuple[Callable[[list[float]], None], list[Span]]] = deque(maxlen=LATE)

    def mark(self) -> Mark:
        """Now, in the order of the device's work."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def submit(self, tell: Callable[[list[float]], None], spans: list[Span]) -> None:
        """Call `tell` with the seconds of each span, as soon as they are known."""
        self._waiting.append((tell, spans))
        self.arrive()

    def arrive(self) -> None:
        """Pass on the times that are known."""
        while self._waiting:
            tell, spans = self._waiting[0]
            if not all(_is_known(end) for _, end in spans):
                return
            self._waiting.popleft()
            tell([_seconds(*span) for span in spans])


def _is_known(mark: Mark) -> bool:
    return isinstance(mark, float) or bool(mark.query())  # type: ignore[no-untyped-call]


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin) if isinstance(begin, float) and isinstance(end, float) else 0.0
    return float(begin.elapsed_time(end)) / 1000.0
