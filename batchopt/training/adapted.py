"""Where a run that decides by itself is: what it has seen, and what it went back on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from batchopt._codec import Record, Upgrade, gained
from batchopt.evidence import LossCurve
from batchopt.schedules.schedule import Schedule

NOTHING_SEEN = LossCurve((), ())


@dataclass(frozen=True, slots=True)
class Decay(Record):
    """A decay that was run to its end.

    Attributes:
        begin: examples at which it began.
        end: examples at which it ended.
        steps: that it took.
        predicted: loss at its end by the forecast, corrected by the run's own losses, in the middle.
        loss: evaluated at its end.
    """

    SCHEMA: ClassVar[str] = "batchopt.decay/1"

    begin: int
    end: int
    steps: int
    predicted: float
    loss: float


@dataclass(frozen=True, slots=True)
class Divergence(Record):
    """A run that diverged and began again.

    Attributes:
        learning_rate: its peak rate.
        at: examples at which its loss became NaN or infinite.
        examples: that it was trained on, those of decays that missed included.
        steps: likewise.
    """

    SCHEMA: ClassVar[str] = "batchopt.divergence/1"

    learning_rate: float
    at: int
    examples: int
    steps: int


@dataclass(frozen=True, slots=True)
class Adapted(Record):
    """Where an adaptive schedule is.

    Attributes:
        schedule: what was done so far, and what is planned from there.
        curve: what was evaluated before the decay.
        missed: decays that ended above the loss, and that the run went back on.
        diverged: runs that diverged before this one began.
    """

    SCHEMA: ClassVar[str] = "batchopt.adapted/3"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.adapted/2": gained("diverged")}

    schedule: Schedule
    curve: LossCurve = NOTHING_SEEN
    missed: tuple[Decay, ...] = ()
    diverged: tuple[Divergence, ...] = ()
