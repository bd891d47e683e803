"""Cooldowns: off the end of a run at a constant rate, a stretch over which the rate falls linearly to zero.

The run's snapshot stays as it is. What a decay brings depends on how much noise a rate leaves in the weights and how
fast it is forgotten, of which runs at constant rates say little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchopt.probing.branches import Leg
from batchopt.probing.budget import LEAST_COOLDOWN_STEPS, LONG_COOLDOWNS, SHORT_COOLDOWN
from batchopt.probing.data import evaluation_examples
from batchopt.probing.session import Session

SHORT, LONG = "cooldowns of short runs", "cooldowns of long runs"
BEFORE = ("short runs, large batch", "short runs, small batch", SHORT, "long runs")
"""What these parts leave of their shares, the cooldowns of the long runs may spend."""


def cooldowns_of_short_runs(session: Session, legs: Sequence[Leg]) -> None:
    """One off each leg; they share their part of the budget evenly."""
    session.check_time()
    budget = session.left_of(SHORT) / len(legs)
    made = [cooldown(session, leg, f"{leg.name}-cooldown", SHORT, share=SHORT_COOLDOWN, budget=budget) for leg in legs]
    session.run([leg for leg in made if leg is not None])


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
    evaluation = evaluation_examples(session.task) / 3.0
    is_evaluated = evaluation <= min(0.5 * budget, wanted * leg.batch_size)
    spared = evaluation if is_evaluated else 0.0
    steps = min(wanted, math.floor((budget - spared) / leg.batch_size))
    if steps < LEAST_COOLDOWN_STEPS or seen < session.task.warmup_examples:
        return None
    return replace(
        leg,
        name=name,
        part=part,
        continues=leg.name,
        budget=steps * leg.batch_size + spared,
        ends_evaluated=is_evaluated,
        cooldown_steps=steps,
    )
