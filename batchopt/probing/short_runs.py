"""Short runs from initialisation: learning rates at one batch size, by successive halving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchopt.probing.branches import Leg
from batchopt.probing.budget import RATE_FACTOR, RUNGS, SHARES, SMALL_RATES, run_share
from batchopt.probing.journal import Part
from batchopt.probing.learning_rate_range import find_learning_rate_range
from batchopt.probing.session import Session, StopProbe


def learning_rates(session: Session, learning_rate: float | None, small: int) -> list[float]:
    """Learning rates of the short runs, falling."""
    if learning_rate is not None:
        return [learning_rate * factor for factor in (4.0, 2.0, 1.0, 0.5, 0.25)]
    budget = SHARES["learning-rate range"] * session.budget

    def work() -> Part:
        top, spending = find_learning_rate_range(
            session.task, budget=budget, seed=session.seed, largest_batch=max(32, small)
        )
        return Part(spending, learning_rate=top)

    top = session.do("learning-rate-range", work).learning_rate or 1.0
    return [top / 2.0 / RATE_FACTOR**k for k in range(SMALL_RATES)]


def short_runs(session: Session, which: str, batch_size: int, rates: list[float], *, rungs: int) -> Leg:
    """Successive halving over learning rates; returns the last leg of the best run.

    Where the best of the first rung is the highest or the lowest rate, one more beyond it is tried.
    """
    unit = run_share(which) * session.budget
    first = Leg(
        name="",
        part=f"short runs, {which} batch",
        batch_size=batch_size,
        learning_rate=1.0,
        budget=unit * RUNGS[0],
        seed=session.seed,
        initial_loss=session.initial_loss,
    )
    legs = [replace(first, name=f"{which}-{k}-rung-0", learning_rate=rate) for k, rate in enumerate(rates)]
    ranked = _ranked(legs, session.run(legs))
    if ranked and ranked[0].learning_rate in (max(rates), min(rates)):
        step = rates[0] / rates[1] if ranked[0].learning_rate == max(rates) else rates[1] / rates[0]
        beyond = replace(first, name=f"{which}-{len(rates)}-rung-0", learning_rate=ranked[0].learning_rate * step)
        legs = [*legs, beyond]
        ranked = _ranked(legs, session.run(legs))
    for rung, width in zip(range(1, rungs), (2, 1), strict=False):
        _check_alive(session, ranked, batch_size)
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
    _check_alive(session, ranked, batch_size)
    return ranked[0]


def _check_alive(session: Session, ranked: list[Leg], batch_size: int) -> None:
    session.check_time()
    if not ranked:
        raise StopProbe(f"every learning rate that was tried at batch size {batch_size} diverged; give one that works")


def _ranked(legs: Sequence[Leg], parts: Sequence[Part]) -> list[Leg]:
    """Legs whose run is alive, the lowest last loss first."""
    last = {leg: loss for leg, part in zip(legs, parts, strict=True) if (loss := last_loss(part)) is not None}
    return sorted(last, key=lambda leg: last[leg])


def last_loss(part: Part) -> float | None:
    """The last loss of a run; None if it diverged."""
    if part.branch is None or part.branch.outcome == "diverged":
        return None
    return part.branch.curve.losses[-1]
