"""Cooldowns: off the end of a run at a constant rate, a stretch over which the rate falls linearly to zero.

The run's snapshot stays as it is. What a decay brings depends on how much noise a rate leaves in the weights and how
fast it is forgotten, of which runs at constant rates say little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchopt.probing.branches import Leg
from batchopt.probing.budget import COOLED_RATES, LEAST_COOLDOWN_STEPS, LONG_COOLDOWNS, MOST_COOLED, SHORT_COOLDOWN
from batchopt.probing.data import evaluation_cost
from batchopt.probing.session import Session
from batchopt.probing.short_runs import last_loss

SHORT, LONG = "cooldowns of short runs", "cooldowns of long runs"
BEFORE = ("short runs, large batch", "short runs, small batch", SHORT, "long runs")
"""What these parts leave of their shares, the cooldowns of the long runs may spend."""


def cooldowns_of_short_runs(session: Session, *batch_sizes: Sequence[Leg]) -> list[list[Leg]]:
    """One off each of the best runs of each batch size, and off the next higher rate where the highest is the best.

    Args:
        session: the probe.
        batch_sizes: runs of each batch size that are alive, the best first.

    Returns:
        Likewise, the one that cooled down to the lowest loss first; those that did not cool down come last.
    """
    session.check_time()
    ranked = [list(legs) for legs in batch_sizes]
    budget = session.left_of(SHORT) / (MOST_COOLED * sum(1 for legs in ranked if legs))
    wanted = [legs[:COOLED_RATES] for legs in ranked]
    for _ in range(1 + MOST_COOLED - COOLED_RATES):
        made = [
            cooldown(session, leg, f"{leg.name}-cooldown", SHORT, share=SHORT_COOLDOWN, budget=budget)
            for legs in wanted
            for leg in legs
        ]
        session.run([leg for leg in made if leg is not None])
        ranked = [sorted(legs, key=lambda leg: _cooled_loss(session, leg)) for legs in ranked]
        wanted = [_beyond_the_best(session, legs) for legs in ranked]
    session.decisions += [_why_first(session, legs) for legs in ranked if legs]
    return ranked


def _why_first(session: Session, legs: Sequence[Leg]) -> str:
    """What the cooldowns of a batch size have shown."""
    cooled = {leg.learning_rate: loss for leg in legs if math.isfinite(loss := _cooled_loss(session, leg))}
    if not cooled:
        return f"At batch size {legs[0].batch_size} no short run cooled down."
    (rate, lowest), *others = cooled.items()
    beside = " and ".join(f"{loss:.4g} at {other:.3g}" for other, loss in others)
    told = f", for {beside}" if others else ""
    return f"At batch size {legs[0].batch_size}, {rate:.3g} is best after a cooldown: to {lowest:.4g}{told}."


def _cooled_loss(session: Session, leg: Leg) -> float:
    """What a run cooled down to; infinite if it did not."""
    part = session.parts.get(f"{leg.name}-cooldown")
    loss = None if part is None else last_loss(part)
    return math.inf if loss is None else loss


def _beyond_the_best(session: Session, legs: Sequence[Leg]) -> list[Leg]:
    """The run at the next higher rate than the best's, if none that high has cooled down."""
    higher = [leg for leg in legs if leg.learning_rate > legs[0].learning_rate] if legs else []
    if any(math.isfinite(_cooled_loss(session, leg)) for leg in higher):
        return []
    return sorted(higher, key=lambda leg: leg.learning_rate)[:1]


def cooldowns_of_long_runs(session: Session, legs: Sequence[Leg]) -> None:
    """Two of different length off each leg; they share their part of the budget and what is left of those before."""
    session.check_time()
    budget = session.left_of(*BEFORE, LONG) / len(legs)
    made = []
    for leg in legs:
        left = budget
        for k, share in enumerate(LONG_COOLDOWNS):
            # The short one is cheap, so what the budget does not hold is missing from the long one.
            own = left / (len(LONG_COOLDOWNS) - k)
            found = cooldown(session, leg, f"{leg.name}-cooldown-{k}", LONG, share=share, budget=own)
            if found is not None:
                left -= found.budget
                made.append(found)
    session.run(made)


def cooldown(session: Session, leg: Leg, name: str, part: str, *, share: float, budget: float) -> Leg | None:
    """The cooldown off the end of a leg, or None where it would be too short or the run has not warmed up.

    Args:
        session: the probe, in which the leg has finished.
        leg: at a constant rate.
        name: of the cooldown.
        part: what its spending is filed under.
        share: its length over that of the run, as far as the budget holds it.
        budget: examples that it may spend. Its end is evaluated where that takes at most half of what it spends.
    """
    seen = session.parts[leg.name].examples_seen
    wanted = round(share * seen / leg.batch_size)
    evaluation = evaluation_cost(session.task)
    is_evaluated = evaluation <= min(0.5 * budget, wanted * leg.step_price)
    spared = evaluation if is_evaluated else 0.0
    steps = min(wanted, math.floor((budget - spared) / leg.step_price))
    if steps < LEAST_COOLDOWN_STEPS or seen < session.task.warmup_examples:
        return None
    return replace(
        leg,
        name=name,
        part=part,
        continues=leg.name,
        budget=steps * leg.step_price + spared,
        ends_evaluated=is_evaluated,
        cooldown_steps=steps,
    )
