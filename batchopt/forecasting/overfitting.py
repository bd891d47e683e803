"""Losses that are evaluated and no longer follow those of training batches, whose examples were seen before.

Either none was evaluated as low as training batches went, or evaluated losses turned up: they rose while those of
training batches went on falling. The law knows one loss, which falls; what it says beyond is held back to what was
seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.evidence import Branch, ProbeReport
from batchopt.planning.plan import LossBand
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast

SEEN_AGAIN = 2
"""Passes over the data from which on training losses may fall below others."""
FOLLOWED = 0.8
"""Losses of training batches scatter by less than this around evaluated ones that they follow."""
RISE, FALL = 1.03, 0.9
"""Evaluated losses turned up where one is so many times an earlier one, while training batches fell to this share: on a
fixed set they scatter by one or two percent between places of a run."""
NEARBY = 0.3
"""Training batches within this share of the examples before an evaluation are of about its time."""


@dataclass(frozen=True, slots=True)
class TurnedUp:
    """Where an evaluated loss turned up, in runs of one setting.

    Attributes:
        batch_size: examples per step.
        learning_rate: the peak rate.
        lowest: loss that was evaluated.
        examples: after which it was.
        later_loss: that was evaluated after it, higher.
        later_examples: after which that was.
    """

    batch_size: int
    learning_rate: float
    lowest: float
    examples: int
    later_loss: float
    later_examples: int

    @property
    def rise(self) -> float:
        """By which factor the loss rose."""
        return self.later_loss / self.lowest

    def loss_after(self, examples: float) -> float:
        """The later loss, or what it comes to if it goes on as it rose: a straight line in logarithms."""
        slope = math.log(self.rise) / math.log(self.later_examples / self.examples)
        return self.later_loss * math.exp(slope * max(0.0, math.log(examples / self.later_examples)))


def turned_up(report: ProbeReport) -> TurnedUp | None:
    """Where evaluated losses rose most while those of training batches fell; None where they did nowhere.

    Runs of one batch size and peak rate are read as one: they go on from each other, with a decay or without.
    """
    population = report.provenance.population
    if population is None:
        return None
    settings: dict[tuple[int, float], list[Branch]] = {}
    for run in report.runs:
        settings.setdefault((run.batch_size, run.learning_rate), []).append(run)
    found = [turn for runs in settings.values() if (turn := _turn_of(runs, population)) is not None]
    return max(found, key=lambda turn: turn.rise, default=None)


def _turn_of(runs: Sequence[Branch], population: int) -> TurnedUp | None:
    """Where the loss rose most; what was evaluated before a decay is not compared with the end of one."""
    found = [
        turn
        for decayed in (False, True)
        if (turn := _turn_in(runs, [place for place in _evaluated(runs) if decayed or not place[2]], population))
    ]
    return max(found, key=lambda turn: turn.rise, default=None)


def _evaluated(runs: Sequence[Branch]) -> list[tuple[float, float, bool]]:
    """Examples, loss, and whether the rate had decayed, in order."""
    return sorted(
        (n, loss, not run.is_constant and n == run.curve.examples[-1])
        for run in runs
        for n, loss in zip(run.curve.examples, run.curve.losses, strict=True)
        if n
    )


def _turn_in(
    runs: Sequence[Branch], evaluated: Sequence[tuple[float, float, bool]], population: int
) -> TurnedUp | None:
    if not evaluated:
        return None
    at, lowest, low_decayed = min(evaluated, key=lambda one: one[1])
    later_at, later, late_decayed = evaluated[-1]
    if low_decayed and not late_decayed:
        return None
    before, after = _training_near(runs, at), _training_near(runs, later_at)
    if later_at < max(SEEN_AGAIN * population, at + 1) or later < RISE * lowest:
        return None
    if before is None or after is None or after > FALL * before:
        return None
    return TurnedUp(runs[0].batch_size, runs[0].learning_rate, lowest, int(at), later, int(later_at))


def _training_near(runs: Sequence[Branch], examples: float) -> float | None:
    """Mean loss of the training batches shortly before a number of examples; None where none were kept."""
    near = [
        loss
        for run in runs
        if run.training is not None
        for n, loss in zip(run.training.examples, run.training.losses, strict=True)
        if (1.0 - NEARBY) * examples <= n <= examples
    ]
    return float(np.mean(near)) if near else None


def lowest_followed(report: ProbeReport, lowest: float) -> float | None:
    """The lowest loss that was evaluated, where it turned up, or training batches in later passes went well below it.

    Such examples had been seen before, and the loss where it is evaluated does not follow theirs for ever.

    Args:
        report: of a probe.
        lowest: loss that a forecast counts as observed.
    """
    evaluated = [loss for run in report.runs for n, loss in zip(run.curve.examples, run.curve.losses, strict=True) if n]
    population, longest = report.provenance.population, max((run.examples for run in report.runs), default=0)
    if not evaluated or population is None or longest < SEEN_AGAIN * population:
        return None
    return min(evaluated) if lowest < FOLLOWED * min(evaluated) or turned_up(report) is not None else None


def doubt_of_overfitting(forecast: Forecast) -> list[str]:
    """That evaluated losses turned up, or that losses were seen on training batches only, seen before."""
    if forecast.overfits_below is None or forecast.population is None:
        return []
    turn = forecast.turned_up
    if turn is not None:
        return [_told(turn, forecast.population)]
    lowest, passes = forecast.overfits_below, forecast.law.longest / forecast.population
    return [
        f"Losses below {lowest:.4g} were seen on training batches only, on examples that had been trained on up to "
        f"{passes:.0f} times: the evaluated loss was never that low, and may never be."
    ]


def _told(turn: TurnedUp, population: int) -> str:
    passes, later = turn.examples / population, turn.later_examples / population
    return (
        f"The evaluated loss turned up: at batch size {turn.batch_size} and peak rate {turn.learning_rate:.3g} it was "
        f"{turn.lowest:.4g} after {turn.examples:,} examples ({passes:.3g} passes over the data) and "
        f"{turn.later_loss:.4g} after {turn.later_examples:,} ({later:.3g} passes), while the losses of training "
        "batches went on falling. The model overfits, so no loss is predicted below the lowest that was evaluated, and "
        "how far losses rise is a guess. Keep the checkpoint with the lowest evaluated loss, regularise, or train on "
        "more data, and probe again."
    )


def held_back(loss: Estimate, forecast: Forecast, examples: float) -> Estimate:
    """A loss as far as it was seen: where it turned up, no lower than was evaluated, and up to what its rise comes to.

    Args:
        loss: at the end of a run, by the law.
        forecast: that it is from.
        examples: of the run.
    """
    lowest, turn = forecast.overfits_below, forecast.turned_up
    has_risen = turn is not None and examples > turn.later_examples
    if lowest is None or (loss.value >= lowest and not has_risen):
        return loss
    if turn is None:
        return Estimate(loss.value, loss.low, max(loss.high, lowest), False)
    return Estimate(max(loss.value, lowest), max(loss.low, lowest), max(loss.high, turn.loss_after(examples)), False)


def band_held_back(band: LossBand, forecast: Forecast) -> LossBand:
    """The losses along a run as far as they were seen, where the evaluated loss turned up; else as they are."""
    if forecast.turned_up is None:
        return band
    points = [
        held_back(Estimate(value, low, high, True), forecast, examples)
        for examples, value, low, high in zip(band.examples, band.losses, band.low, band.high, strict=True)
    ]
    return replace(band, losses=tuple(point.value for point in points), high=tuple(point.high for point in points))
