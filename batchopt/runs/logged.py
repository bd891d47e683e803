"""A run that was trained before, as evidence for a forecast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batchopt._checks import check_count, check_positive
from batchopt.evidence import Branch, LossCurve, TrainingLosses
from batchopt.learning_rate_schedule import COOLDOWN, LearningRateSchedule, Shape
from batchopt.runs.rates import schedule_of_rates
from batchopt.runs.windows import window_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_EVALUATIONS = 48
"""Losses of a run that stay single points; more are means over windows, as those of training batches are."""
ENDED = 0.99
"""A run whose last loss comes after this share of its horizon was not stopped: the last log interval may be cut off."""
PAST_HORIZON = 2
"""Steps by which a run may go on past its horizon: logs count from 0 or from 1, and last batches may be smaller."""
MOST_RESTARTS = 0.25
"""Where more than this share of the points go back to an earlier place, their order is not that of the training. Set by
hand: a restart goes back once, and a shuffled table at half of its points."""
MOST_TWICE = 0.5
"""A log in which a larger share of the places has two losses is of two runs. Set by hand: a restart repeats less."""


def logged_run(
    *,
    batch_size: int,
    learning_rate: float | Sequence[float | None],
    steps: Sequence[float] | None = None,
    examples: Sequence[float] | None = None,
    losses: Sequence[float | None] | None = None,
    training_losses: Sequence[float | None] | None = None,
    learning_rate_schedule: Shape | LearningRateSchedule | None = None,
    horizon: int | None = None,
    horizon_steps: int | None = None,
    warmup_examples: int = 0,
    warmup_steps: int = 0,
    cooldown: float = COOLDOWN,
    seed: int = 0,
    diverged: bool = False,
    stopped: bool = False,
) -> Branch:
    """A run that you have trained, for `Forecast.fit(runs=[...])`.

    Losses may be as noisy as a training loop logs them: many are taken as means over windows. A training loss is taken
    to be that of the batch of its step, before the step. One that is a mean since the last log, as some trainers write,
    is of half a log interval earlier: give the middle of the interval as its step.

    Points come in the order of the training: one at an earlier place is a restart from a checkpoint, and counts in
    place of what was logged there and after it before. Points in no order (more than a quarter go back) are sorted, and
    the last of several at one place counts. None stands for what was not logged there. A run whose last losses are NaN
    or infinite has diverged; NaN before a finite loss counts as not logged.

    Args:
        batch_size: examples per step, over all devices and accumulated gradients.
        learning_rate: the peak rate; or the rates as they were logged, one for each point, from which the schedule is
            read.
        steps: of each point, counted by the optimizer; or give `examples`.
        examples: seen at each point.
        losses: evaluated ones, or whatever is to be predicted; lower is better, zero or more.
        training_losses: of the run's own batches, beside evaluated ones or alone.
        learning_rate_schedule: "constant" (if None), "linear", "cosine", "wsd", a function of progress, or the
            `LearningRateSchedule` of this run.
        horizon: examples over which the rate decays; the last point's if None.
        horizon_steps: the same in steps; give one of them.
        warmup_examples: over which the rate rose.
        warmup_steps: the same in steps; give one of them.
        cooldown: share of the horizon over which a wsd rate fell.
        seed: of initialisation and data order: runs that differ in nothing else tell how much seeds scatter.
        diverged: whether the run failed, where its losses do not show it.
        stopped: whether the run was ended before its rate had decayed, so that a decay needs a horizon.

    Raises:
        ValueError: a value breaks its rule, or there is no loss at all.

    Example:
        >>> run = logged_run(
        ...     batch_size=64, learning_rate=[0, 0.1, 0.1, 0], steps=[0, 100, 800, 1_000], losses=[2.3, 1.1, 0.6, 0.4]
        ... )
        >>> run.learning_rate, run.learning_rate_schedule.examples, run.curve.losses[-1]
        (0.1, (0, 6400, 51200, 64000), 0.4)
    """
    batch_size = _count("batch_size", batch_size)
    horizon = _either("horizon", horizon, horizon_steps, batch_size)
    warmup = _either("warmup", warmup_examples or None, warmup_steps or None, batch_size) or 0
    if isinstance(learning_rate, np.generic):
        learning_rate = learning_rate.item()
    at = _places(steps, examples, batch_size)
    losses, training_losses = _apart(losses, training_losses)
    evaluated, trained = _Curve.of("losses", at, losses), _Curve.of("training_losses", at, training_losses)
    if not (evaluated.seen or trained.seen):
        raise ValueError("a run needs losses or training_losses, got none")
    last = float(at.max())
    if horizon is not None and last > horizon + PAST_HORIZON * batch_size:
        raise ValueError(
            f"the run goes on to {last:g} examples, past its horizon of {horizon}: are these steps? Give horizon_steps "
            "in place of a horizon in examples, or the horizon of the whole run"
        )
    decays = isinstance(learning_rate, int | float) and learning_rate_schedule not in (None, "constant")
    if stopped and horizon is None and decays:
        raise ValueError("the run was stopped before its rate had decayed: give the horizon over which it would have")
    rate, schedule = _rate_and_schedule(
        learning_rate,
        at,
        learning_rate_schedule,
        max(1, round(last)) if horizon is None else horizon,
        warmup,
        cooldown,
    )
    failed = diverged or evaluated.ends_badly or trained.ends_badly
    if not failed and last < 2 * batch_size:
        raise ValueError(
            f"a run must take two steps or more, and this one ends after {last:g} examples at batch size {batch_size}: "
            "are these steps, or epochs? Count in examples or in steps"
        )
    curve, training = _losses_of(evaluated, trained, batch_size)
    stopped = stopped or (horizon is not None and last < ENDED * horizon)
    return Branch(
        batch_size=batch_size,
        learning_rate=rate,
        curve=curve,
        outcome="diverged" if failed else "stopped" if stopped else "finished",
        seed=_count("seed", seed, least=0),
        training=training,
        learning_rate_schedule=schedule,
    )


class _Curve(NamedTuple):
    """What was logged of one loss: finite values by rising examples, and whether anything was, and how it ended."""

    examples: Floats
    losses: Floats
    seen: bool = False
    ends_badly: bool = False

    @classmethod
    def of(cls, name: str, at: Floats, values: Sequence[float | None] | None) -> _Curve:
        """Sorted, once for every place, up to the last finite loss."""
        if values is None:
            return cls(np.array([]), np.array([]))
        places, given = _logged(name, at, values)
        if (given < 0).any():
            raise ValueError(
                f"{name} must be zero or more, got {given[given < 0][0]:g} after {places[given < 0][0]:g} examples: "
                "give the mean per-example loss as it is, not its logarithm and no reward"
            )
        places, given = _once(name, places, given)
        finite = np.isfinite(given)
        bad = bool(len(given)) and not finite[-1]
        return cls(places[finite], given[finite], bool(len(given)), bad)


def _count(name: str, value: int, *, least: int = 1) -> int:
    """A whole number; NumPy's is as good as Python's."""
    whole = value.item() if isinstance(value, np.generic) else value
    check_count(name, whole, least=least)
    return whole


def _either(what: str, examples: int | None, steps: int | None, batch_size: int) -> int | None:
    """Examples, which may be given in steps."""
    if examples is not None and steps is not None:
        raise ValueError(f"give {what} either in examples or in steps, got {examples} examples and {steps} steps")
    if steps is not None:
        return batch_size * _count(f"{what}_steps", steps)
    return None if examples is None else _count(what if what == "horizon" else f"{what}_examples", examples)


def _apart(
    losses: Sequence[float | None] | None, training_losses: Sequence[float | None] | None
) -> tuple[Sequence[float | None] | None, Sequence[float | None] | None]:
    """NaN where the other loss is a number was not logged, as tables are filled up."""
    if losses is None or training_losses is None or len(losses) != len(training_losses):
        return losses, training_losses
    pairs = [
        (None if _is_bad(a) and _is_number(b) else a, None if _is_bad(b) and _is_number(a) else b)
        for a, b in zip(losses, training_losses, strict=True)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _is_bad(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def _places(steps: Sequence[float] | None, examples: Sequence[float] | None, batch_size: int) -> Floats:
    given, name = (steps, "steps") if examples is None else (examples, "examples")
    if given is None or (steps is not None and examples is not None):
        raise ValueError(f"give either steps or examples, got {'none' if given is None else 'both'} of them")
    try:
        at = np.asarray(given, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"{name} must be whole numbers below 1e308, got one that is larger") from None
    if at.ndim != 1 or not len(at):
        raise ValueError(f"{name} must be a list of numbers, one at least, got {given!r}")
    wrong = at[~(np.isfinite(at) & (at >= 0) & (at == np.round(at)))]
    if len(wrong):
        raise ValueError(f"{name} must be whole numbers, zero or more, got {wrong[0]:g}")
    return at if steps is None else at * batch_size


def _logged(name: str, at: Floats, values: Sequence[float | None]) -> tuple[Floats, Floats]:
    """Places and values, without what was not logged."""
    if len(values) != len(at):
        raise ValueError(f"as many {name} as steps or examples are needed, got {len(values)} and {len(at)}")
    there = np.array([value is not None for value in values], dtype=bool)
    return at[there], np.array([value for value in values if value is not None], dtype=np.float64)


def _once(name: str, places: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Sorted by place; of several attempts, or values at one place, the last."""
    places, values = _last_attempts(name, places, values)
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    if not len(places):
        return places, values
    is_last = np.append(places[1:] != places[:-1], True)
    differ = (values[1:] != values[:-1]) & ~is_last[:-1] & ~(np.isnan(values[1:]) & np.isnan(values[:-1]))
    if differ.sum() > MOST_TWICE * is_last.sum():
        raise ValueError(
            f"{name} must be of one run, and {differ.sum()} of {is_last.sum()} places have different ones, "
            f"{places[:-1][differ][0]:g} examples for example: are these two runs? Name them apart"
        )
    return places[is_last], values[is_last]


def _last_attempts(name: str, places: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Without what a restart from a checkpoint did again; all where the order is not that of the training.

    Raises:
        ValueError: the run begins again.
    """
    back = np.flatnonzero(np.diff(places) <= 0) + 1
    if len(back) > MOST_RESTARTS * len(places):
        return places, values
    kept = np.ones(len(places), dtype=bool)
    for here in back:
        if places[here] <= places[0] < places[:here].max():
            raise ValueError(
                f"{name} must be of one run, and after {places[:here].max():g} examples they begin again at "
                f"{places[here]:g}: are these two runs? Name them apart, or leave out the first attempt"
            )
        kept[:here] &= places[:here] < places[here]
    return places[kept], values[kept]


def _rate_and_schedule(
    rate: float | Sequence[float | None],
    at: Floats,
    shape: Shape | LearningRateSchedule | None,
    horizon: int,
    warmup: int,
    cooldown: float,
) -> tuple[float, LearningRateSchedule | None]:
    if not isinstance(rate, int | float):
        if shape is not None or warmup:
            raise ValueError(
                "logged learning rates say how the rate changes: leave out learning_rate_schedule and warmup_examples, "
                "or give the peak rate in place of the logged ones"
            )
        places, rates = _logged("learning rates", at, rate)
        places, rates = _once("learning rates", places[np.isfinite(rates)], rates[np.isfinite(rates)])
        if not len(rates) or rates.min() < 0 or rates.max() <= 0:
            raise ValueError(f"logged learning rates must be zero or more, and not all zero, got {list(rate)[:5]!r}")
        return float(rates.max()), schedule_of_rates(places, rates)
    check_positive("learning_rate", rate)
    if isinstance(shape, LearningRateSchedule):
        return float(rate), shape
    if shape in (None, "constant") and not warmup:
        return float(rate), None
    made = LearningRateSchedule.of(shape or "constant", examples=horizon, warmup_examples=warmup, cooldown=cooldown)
    return float(rate), made


def _losses_of(evaluated: _Curve, trained: _Curve, batch_size: int) -> tuple[LossCurve, TrainingLosses | None]:
    """Single evaluations, and means of what is noisy."""
    if not trained.seen and len(evaluated.examples) > MOST_EVALUATIONS:
        evaluated, trained = trained, evaluated
    if trained.seen:
        training = window_means(_before_step(trained.examples, batch_size), trained.losses)
    elif len(evaluated.examples) and evaluated.examples[0] == batch_size:
        # A loss logged with the first step was taken before it.
        evaluated = evaluated._replace(examples=_before_step(evaluated.examples, batch_size))
    return _thinned(evaluated), training if trained.seen else None


def _before_step(examples: Floats, batch_size: int) -> Floats:
    """Examples seen before the step with which a training loss was logged: steps are counted from 1, or from 0."""
    return examples - batch_size if len(examples) and examples[0] >= batch_size else examples


def _thinned(curve: _Curve) -> LossCurve:
    """Evaluations up to the first of zero, which has no logarithm; of too many some, spread over log examples.

    Raises:
        ValueError: the first is zero.
    """
    if len(curve.losses) and curve.losses[0] == 0:
        raise ValueError(
            f"the first of the losses must be above zero, got 0 after {curve.examples[0]:g} examples: leave it out "
            "(None, or an empty cell) if it was not logged"
        )
    end = int(np.argmax(curve.losses == 0)) if (curve.losses == 0).any() else len(curve.losses)
    examples, losses = curve.examples[:end], curve.losses[:end]
    if len(examples) > MOST_EVALUATIONS:
        early = np.geomspace(max(1.0, examples[0]), examples[-1], MOST_EVALUATIONS // 2)
        late = np.linspace(examples[0], examples[-1], MOST_EVALUATIONS // 2)
        kept = np.unique(np.searchsorted(examples, np.concatenate([examples[:1], early, late])))
        examples, losses = examples[np.minimum(kept, end - 1)], losses[np.minimum(kept, end - 1)]
        examples, first = np.unique(examples, return_index=True)
        losses = losses[first]
    return LossCurve(tuple(int(n) for n in examples), tuple(float(loss) for loss in losses))
