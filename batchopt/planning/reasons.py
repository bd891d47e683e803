"""Why a plan is what it is, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Alternative
from batchopt.planning.staging import Staging
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

CONSTANT_RATE = (
    "All of this is for a learning rate that stays constant after warm-up: one that decays reaches the loss in other "
    "steps, and its critical batch size is another."
)


def reasons_for(
    goal: ReachLoss | LowestLoss,
    best: Alternative,
    points: Sequence[Alternative],
    *,
    critical: Estimate,
    staging: Staging,
    price: StepCost,
    lowest_observed: float,
    doubts: Sequence[str],
) -> tuple[str, ...]:
    """The reasons of a plan, doubts first."""
    reasons = [*doubts]
    if not best.cost.resolved:
        reasons.insert(0, f"This is a best guess: the predicted cost is known only as {best.cost} {price.unit}.")
    if best.loss.value < lowest_observed / 1.2:
        reasons.append(
            f"The loss {best.loss.value:.3g} lies {lowest_observed / best.loss.value:.1f} times below the lowest "
            f"that the probe saw ({lowest_observed:.3g}): the steps to it are extrapolated."
        )
    reasons.append(
        f"The critical batch size of this loss is {critical} examples: there a run takes twice the fewest steps and "
        "twice the fewest examples."
    )
    reasons.append(_step_cost_sentence(goal, price))
    reasons.extend(_neighbour_sentences(best, points, price))
    reasons.append(_schedule_sentence(staging))
    reasons.append(CONSTANT_RATE)
    return tuple(reasons)


def _step_cost_sentence(goal: ReachLoss | LowestLoss, price: StepCost) -> str:
    if price.knees:
        knee = price.knees[0]
        return (
            f"A step costs {price(1):.3g} {price.unit} at a batch of 1 and {price(knee.batch_size):.3g} at "
            f"{knee.batch_size:g}; beyond, every further example costs {price.per_example + knee.per_example:.3g}."
        )
    if price.per_example == 0:
        return f"A step costs {price.per_step:.3g} {price.unit} whatever its batch: the largest useful one is best."
    if price.per_step == 0:
        return f"Only examples count ({price.per_example:.3g} {price.unit} each), so small batches are best."
    even = price.per_step / price.per_example
    wanted = "the loss" if isinstance(goal, ReachLoss) else "the lowest loss"
    return (
        f"A step costs {price.per_step:.3g} plus {price.per_example:.3g} an example ({price.unit}); "
        f"its fixed part is worth {even:.3g} examples, so the least cost to {wanted} lies "
        f"near sqrt(critical batch size x {even:.3g})."
    )


def _neighbour_sentences(best: Alternative, points: Sequence[Alternative], price: StepCost) -> list[str]:
    halves = [p for p in points if p.batch_size * 2 == best.batch_size]
    doubles = [p for p in points if p.batch_size == 2 * best.batch_size]
    named = [("Half", p) for p in halves] + [("Twice", p) for p in doubles]
    return [_neighbour_sentence(word, p, best, price) for word, p in named]


def _neighbour_sentence(word: str, other: Alternative, best: Alternative, price: StepCost) -> str:
    change = other.cost.value / best.cost.value - 1.0
    # The choice weighs all that is possible, so a neighbour may be cheaper on the best guess alone.
    doubt = " on the best guess, but more over all that the evidence allows" if change < 0 else ""
    return (
        f"{word} the batch ({other.batch_size}) takes {other.steps.value:,.0f} steps and "
        f"{other.examples.value:,.0f} examples: {change:+.0%} {price.unit}{doubt}."
    )


def _schedule_sentence(staging: Staging) -> str:
    segments = staging.schedule.segments
    if len(segments) == 1:
        return "A batch size that varies over the run is not predicted to save 2 %, so the schedule is constant."
    path = " to ".join(str(segment.batch_size) for segment in segments)
    return (
        f"The schedule raises the batch size ({path}) and is predicted to cost {1.0 - staging.relative_cost:.0%} less."
    )
