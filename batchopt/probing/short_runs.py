"""Short runs from initialisation: learning rates at one batch size, by successive halving."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace

from batchopt.probing.branches import Leg
from batchopt.probing.budget import EXTRA_RUNS, RATE_FACTOR, RATES, RUNGS, SEARCH_FACTOR, SHARES, run_share
from batchopt.probing.journal import Part
from batchopt.probing.learning_rate_range import find_learning_rate_range
from batchopt.probing.session import Session

RISEN = 1.02
"""A run whose loss ends this many times above its first has too high a rate, whatever the scatter of its batches."""
MOST_EXTENSIONS = 6
"""Learning rates that are tried beyond the given ones, at most."""


def rates_from_range(session: Session, learning_rate: float | None, batch_size: int) -> list[float]:
    """Learning rates for the larger batch size, falling: around a given one, or below where a rising one blows up."""
    if learning_rate is not None:
        return [learning_rate * RATE_FACTOR, learning_rate, learning_rate / RATE_FACTOR]
    budget = SHARES["learning-rate range"] * session.budget

    def work() -> Part:
        top, spending = find_learning_rate_range(
            session.task, budget=budget, seed=session.seed, largest_batch=max(32, batch_size)
        )
        return Part(spending, learning_rate=top)

    top = session.do("learning-rate-range", work).learning_rate or 1.0
    return [top / SEARCH_FACTOR ** (1 + k) for k in range(RATES)]


def rates_from_root(winner: Leg, batch_size: int) -> list[float]:
    """Learning rates for another batch size, falling: around the winner's, scaled by the root of the batch size."""
    middle = winner.learning_rate * math.sqrt(batch_size / winner.batch_size)
    return [middle * RATE_FACTOR, middle, middle / RATE_FACTOR]


def short_runs(session: Session, which: str, batch_size: int, rates: list[float]) -> Leg | None:
    """Successive halving over learning rates; returns the last leg of the best run, None if every run diverged.

    Where the best of the first rung is the highest or the lowest rate, rates beyond it are tried.
    """
    unit = run_share(which) * session.budget
    first = Leg(
        name="",
        part=f"short runs, {which} batch",
        batch_size=batch_size,
        learning_rate=1.0,
        budget=unit * RUNGS[0],
        seed=session.seed,
    )
    ranked = _first_rung(
        session, [replace(first, name=f"{which}-{k}-rung-0", learning_rate=r) for k, r in enumerate(rates)]
    )
    for rung, width in ((1, 2), (2, 1)):
        session.check_time()
        going_on = [
            replace(
                leg,
                name=leg.name.replace(f"rung-{rung - 1}", f"rung-{rung}"),
                continues=leg.name,
                budget=unit * RUNGS[rung],
            )
            for leg in ranked[:width]
        ]
        ranked = _ranked(going_on, session.run(going_on)) or ranked
    session.check_time()
    return ranked[0] if ranked else None


def _first_rung(session: Session, legs: list[Leg]) -> list[Leg]:
    """Runs of the first rung, the best first: the given rates, and rates beyond them while the best is at an edge.

    A run that diverges early costs little, so going on is repeated within what the extra runs may cost.
    """
    left = EXTRA_RUNS * legs[0].budget
    parts = session.run(legs)
    for _ in range(MOST_EXTENSIONS):
        ranked = _ranked(legs, parts)
        beyond = _beyond([leg.learning_rate for leg in legs], ranked)
        if beyond is None or left < legs[0].budget:
            break
        name = legs[0].name.replace("-0-rung", f"-{len(legs)}-rung")
        extra = replace(legs[0], name=name, learning_rate=beyond)
        (part,) = session.run([extra])
        left -= part.spending.examples
        legs, parts = [*legs, extra], [*parts, part]
    return _ranked(legs, parts)


def _beyond(rates: list[float], ranked: list[Leg]) -> float | None:
    """The next rate to try: outwards of the edge that the best is at, far down if no run made progress, or None."""
    if not ranked:
        return min(rates) / RATE_FACTOR**2
    best = ranked[0].learning_rate
    if best == min(rates):
        return best / RATE_FACTOR
    return best * RATE_FACTOR if best == max(rates) else None


def _ranked(legs: Sequence[Leg], parts: Sequence[Part]) -> list[Leg]:
    """Legs whose run is alive, the lowest last loss first; one that ended above where it began comes to nothing."""
    last = {
        leg: loss
        for leg, part in zip(legs, parts, strict=True)
        if (loss := last_loss(part)) is not None and loss < RISEN * first_loss(part)
    }
    return sorted(last, key=lambda leg: last[leg])


def first_leg(leg: Leg) -> Leg:
    """The first rung's leg of the run that a later rung's leg is of."""
    return replace(leg, name=re.sub(r"rung-\d$", "rung-0", leg.name))


def last_loss(part: Part) -> float | None:
    """The last loss of a run; None if it diverged."""
    if part.branch is None or part.branch.outcome == "diverged":
        return None
    return part.branch.last_loss


def first_loss(part: Part) -> float:
    """The loss of the first batches of a run."""
    training = part.branch.training if part.branch else None
    return math.inf if training is None else statistics.fmean(training.losses[:3])
