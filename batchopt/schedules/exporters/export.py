"""What an exporter gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Export:
    """A schedule for one consumer.

    Attributes:
        text: what to paste.
        notes: what the consumer does otherwise than the schedule says, and who rescales the learning rate.
    """

    text: str
    notes: tuple[str, ...]
