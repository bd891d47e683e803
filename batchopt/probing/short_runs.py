"""Runs from initialisation that find learning rates: coarsely at the large batch size, then finely at both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchopt.probing.branches import Leg
from batchopt.probing.budget import (
    EXTRA_FINE_RATES,
    EXTRA_GIVEN_RATES,
    EXTRA_RATES,
    FINE_FACTOR,
    GIVEN_FACTOR,
    RATES,
    RATES_AFTER_WRONG,
    SEARCH_FACTOR,
    SHARES,
    search_budget,
    short_run_budget,
)
from batchopt.probing.journal import Part
from batchopt.probing.learning_rate_range import HIGHEST, find_learning_rate_range
from batchopt.probing.session import Session

RISEN = 0.02
"""A run whose loss ends above the initial one by more than this share, and by more than the scatter of its batches
explains, has too high a rate."""
STANDARD_ERRORS = 2.0
MOST_EXTENSIONS = 6
"""Learning rates that are tried beyond the given ones, at most."""
RATE_EXPONENT = 0.75
"""The best rate at another batch size is first looked for at this power of the batch size: between 0.5 and 1."""


FAR = 30.0
"""A rate that is further from the best of runs of a few steps is wrong. Of 65 small probes whose prior was within three
of the best rate of long runs, half found rates nine times as high or low better in a few steps."""


def search_learning_rate(session: Session, learning_rate: float | None, batch_size: int) -> Leg | None:
    """Runs of a few steps over learning rates far apart; returns that of the best, None if every run diverged.

    They are at a rate that is given, or that the task's prior says, and at one above and below it. Where there is none,
    or where a run beyond these did better or none made progress, all rates are searched. If that finds the best far
    from the rate, or none near it made progress, the session notes that the rate was wrong.
    """
    leg = Leg(
        name="",
        part="learning-rate search",
        batch_size=batch_size,
        learning_rate=1.0,
        budget=search_budget(session.budget),
        step_price=session.price(batch_size),
        seed=session.seed,
        initial_loss=session.initial_loss,
    )
    given, extra = learning_rate or _rate_of_prior(session, batch_size), float(EXTRA_RATES)
    if given is not None:
        rates = [given * GIVEN_FACTOR, given, given / GIVEN_FACTOR]
        ranked = _best_of(session, "given", leg, rates, factor=GIVEN_FACTOR, extra=EXTRA_GIVEN_RATES)
        if ranked and rates[-1] <= ranked[0].learning_rate <= rates[0]:
            return ranked[0]
        tried = [part for name, part in session.parts.items() if name.startswith("given-")]
        extra += RATES_AFTER_WRONG - sum(part.spending.of_budget for part in tried) / leg.budget
    else:
        ranked = []
    near = bool(ranked)
    ranked += _best_of(session, "rate", leg, _all_rates(session, batch_size), factor=GIVEN_FACTOR, extra=extra)
    best = next(iter(_ranked(ranked, [session.parts[leg.name] for leg in ranked])), None)
    if given is not None:
        _judge(session, _named(session, learning_rate, given, batch_size), given, best if near else None)
    return best


def short_runs(session: Session, which: str, batch_size: int, found: Leg) -> list[Leg]:
    """Longer runs at three learning rates or more; returns those that are alive, the best first.

    Args:
        session: the probe.
        which: "large" or "small".
        batch_size: examples per step.
        found: the best run of the learning-rate search.
    """
    session.check_time()
    leg = replace(
        found,
        part=f"short runs, {which} batch",
        batch_size=batch_size,
        budget=short_run_budget(session.budget),
        step_price=session.price(batch_size),
    )
    middle = found.learning_rate * (batch_size / found.batch_size) ** RATE_EXPONENT
    rates = [middle * FINE_FACTOR, middle, middle / FINE_FACTOR]
    return _best_of(session, which, leg, rates, factor=FINE_FACTOR, extra=EXTRA_FINE_RATES)


def _named(session: Session, learning_rate: float | None, given: float, batch_size: int) -> str:
    """What a rate is: one that was given, or the task's prior."""
    if learning_rate is not None or session.task.prior is None:
        return f"The learning rate that was given, {given:.3g} at batch size {batch_size},"
    size, rate = session.task.prior
    carried = "," if size == batch_size else f", which is {given:.3g} at {batch_size},"
    return f"The task's prior, {rate:.3g} at batch size {size}{carried}"


def _judge(session: Session, what: str, given: float, best: Leg | None) -> None:
    """Say whether a rate was wrong, after all rates were searched; a prior that was counts no more.

    Args:
        session: the probe.
        what: the rate is.
        given: the rate.
        best: of the search; None where no run near the rate made progress.
    """
    if best is not None and max(best.learning_rate / given, given / best.learning_rate) <= FAR:
        session.decisions.append(
            f"In runs of a few steps {best.learning_rate:.3g} did best. {what} is near enough to be the best of long "
            "ones."
        )
        return
    seen = "no run near it made progress"
    if best is not None:
        seen = f"a run at {best.learning_rate:.3g} did better than all near it"
    session.notes.append(
        f"{what} is far from what does best in runs of a few steps: {seen}, so all rates were searched."
    )
    session.prior = None


def _rate_of_prior(session: Session, batch_size: int) -> float | None:
    """The rate that the task's prior says, at another batch size."""
    if session.task.prior is None:
        return None
    size, rate = session.task.prior
    return float(rate * (batch_size / size) ** RATE_EXPONENT)


def _all_rates(session: Session, batch_size: int) -> list[float]:
    """Learning rates of the search, falling from where a rising one blows up."""
    budget = SHARES["learning-rate range"] * session.budget

    def work() -> Part:
        top, spending = find_learning_rate_range(
            session.task, budget=budget, price=session.price, seed=session.seed, largest_batch=max(32, batch_size)
        )
        return Part(spending, learning_rate=top)

    top = session.do("learning-rate-range", work).learning_rate or 1.0
    session.decisions.append(
        f"A learning rate that rose with every step made the loss rise at {top:.3g}: the search begins below that."
        if top < HIGHEST
        else f"A learning rate that rose with every step up to {top:.3g} did not make the loss rise."
    )
    return [top / SEARCH_FACTOR ** (1 + k) for k in range(RATES)]


def _best_of(
    session: Session, name: str, leg: Leg, rates: Sequence[float], *, factor: float, extra: float
) -> list[Leg]:
    """Runs at the given rates, and at rates beyond them while the best is at an edge: those alive, the best first.

    A run that diverges early costs little, so going on is repeated within what `extra` runs may cost. Upwards it ends
    where a run diverges, whose rate is then the outermost.
    """
    legs = [replace(leg, name=f"{name}-{k}", learning_rate=rate) for k, rate in enumerate(rates)]
    parts = session.run(legs)
    left = extra * leg.budget
    for _ in range(MOST_EXTENSIONS):
        beyond = _beyond([leg.learning_rate for leg in legs], _ranked(legs, parts), factor)
        if beyond is None or left < leg.budget:
            break
        further = replace(leg, name=f"{name}-{len(legs)}", learning_rate=beyond)
        (part,) = session.run([further])
        left -= part.spending.of_budget
        legs, parts = [*legs, further], [*parts, part]
    session.check_time()
    ranked = _ranked(legs, parts)
    session.decisions.append(_why_best(legs, parts, ranked))
    return ranked


def _why_best(legs: Sequence[Leg], parts: Sequence[Part], ranked: Sequence[Leg]) -> str:
    """What runs at several rates have shown."""
    rates = sorted(leg.learning_rate for leg in legs)
    told = f"Of {len(rates)} learning rates from {rates[0]:.3g} to {rates[-1]:.3g} at batch size {legs[0].batch_size},"
    if not ranked:
        return f"{told} none made progress."
    best = parts[legs.index(ranked[0])]
    dead = sorted(leg.learning_rate for leg in legs if leg not in ranked)
    ended = f"; {', '.join(f'{rate:.3g}' for rate in dead)} diverged or rose" if dead else ""
    return (
        f"{told} {ranked[0].learning_rate:.3g} did best, a loss of {last_loss(best):.4g} after {best.examples_seen:,} "
        f"examples{ended}."
    )


def _beyond(rates: list[float], ranked: list[Leg], factor: float) -> float | None:
    """The next rate to try: outwards of the edge that the best is at, far down if no run made progress, or None."""
    if not ranked:
        return min(rates) / factor**2
    best = ranked[0].learning_rate
    if best == min(rates):
        return best / factor
    return best * factor if best == max(rates) else None


def _ranked(legs: Sequence[Leg], parts: Sequence[Part]) -> list[Leg]:
    """Legs whose run is alive, the lowest last loss first; one that ended above where it began comes to nothing.

    Where no loss is clearly below the initial one yet, chance ranks those that are within an error of the lowest (the
    smallest error of them all). Of these the highest rate comes first: it gets furthest.
    """
    part_of = dict(zip(legs, parts, strict=True))
    last = {
        leg: loss
        for leg, part in part_of.items()
        if (loss := last_loss(part)) is not None and not _has_risen(loss, part, leg.initial_loss)
    }
    if not last or any(_has_fallen(loss, part_of[leg], leg.initial_loss) for leg, loss in last.items()):
        return sorted(last, key=lambda leg: last[leg])
    near = min(last.values()) + min(_error_of_last(part_of[leg]) or 0.0 for leg in last)
    return sorted(last, key=lambda leg: (0, -leg.learning_rate) if last[leg] <= near else (1, last[leg]))


def _has_risen(loss: float, part: Part, initial: float | None) -> bool:
    """Whether a last loss is clearly above the initial one."""
    error = _error_of_last(part)
    if initial is None or error is None:
        return False
    return loss > initial + RISEN * abs(initial) + STANDARD_ERRORS * error


def _has_fallen(loss: float, part: Part, initial: float | None) -> bool:
    """Whether a last loss is clearly below the initial one; taken for granted where that is not known."""
    error = _error_of_last(part)
    if initial is None or error is None:
        return True
    return loss < initial - RISEN * abs(initial) - STANDARD_ERRORS * error


def _error_of_last(part: Part) -> float | None:
    """Standard error of the mean of the last training losses; None where there are none."""
    training = part.branch.training if part.branch else None
    if training is None or not training.examples:
        return None
    late = [
        error for n, error in zip(training.examples, training.errors, strict=True) if n >= 0.8 * training.examples[-1]
    ]
    return math.sqrt(sum(error**2 for error in late)) / len(late)


def last_loss(part: Part) -> float | None:
    """The last loss of a run; None if it diverged."""
    if part.branch is None or part.branch.outcome == "diverged":
        return None
    return part.branch.last_loss
