"""Why a plan is what it is, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchopt._wording import number
from batchopt._wording import seconds as time_in_words
from batchopt.planning.goal import BALANCED, LossGoal, LowestLoss, ReachLoss
from batchopt.planning.plan import FIRST_REASON, Alternative
from batchopt.schedules.schedule import Segment
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

SHAPES_IN_WORDS = {
    "constant": "stays at its peak after the warm-up",
    "linear": "warms up and falls linearly to zero",
    "cosine": "warms up and falls to zero along a cosine",
    "wsd": "warms up, stays at its peak, and falls linearly to zero over the last fifth",
    "function": "follows the function that was given",
}


NEARLY, FASTER = 0.1, 0.7
"""A run that ends at a loss (or costs) at most a tenth more, in at most this share of the time, is worth a word."""
DEARER = " by the middle prediction, but it is worse on average over all that the forecast takes for possible"
OWN_DECISION = (
    "The steps and examples above are those of a run that decides itself when to decay (AdaptiveSchedule, or train "
    "--adapt): most need less than the schedule, some more."
)
STEPS_UNTIL_THEN = (
    "The steps and examples above are those after which a run by this schedule first has the loss, which may be before "
    "its end; those of a run that misses it count too, and so do those of the next run."
)


def reasons_for(
    goal: LossGoal,
    best: Alternative,
    points: Sequence[Alternative],
    *,
    shape: str,
    horizon: int,
    critical: Estimate | None,
    segments: Sequence[Segment],
    relative_cost: float,
    price: StepCost,
    lowest_observed: float,
    expected_regret: float | None,
    rate: str | None,
    doubts: Sequence[str],
) -> tuple[str, ...]:
    """The reasons of a plan, doubts first."""
    reasons = [*doubts]
    if not best.cost.resolved:
        reasons.insert(0, f"This is a best guess: the predicted cost is known only as {best.cost} {price.unit}.")
    if not best.loss.resolved:
        reasons.insert(0, f"The loss at the end of the schedule is unresolved: {best.loss}.")
    reaches = isinstance(goal, ReachLoss)
    loss = goal.loss if isinstance(goal, ReachLoss) else best.loss.value
    if loss < lowest_observed / 1.2:
        reasons.append(
            f"{'The steps to a' if reaches else 'A'} loss of {loss:.3g} {'are' if reaches else 'is'} extrapolated: the "
            f"lowest that was seen is {lowest_observed:.3g}, {lowest_observed / loss:.1f} times as high."
        )
    reasons.append(f"{FIRST_REASON}{SHAPES_IN_WORDS[shape]} ({shape}), in a run of {horizon:,} examples.")
    if best.seconds is not None and price.unit != "seconds":
        reasons.append(_time_sentence(goal, best, points, best.seconds.value))
    reasons += [] if rate is None else [rate]
    if isinstance(goal, ReachLoss):
        reasons.append(
            "A loss counts as reached at the end of the decay. The schedule is as long as nine of ten runs need, by "
            "the forecast, but at most three times as long as half of them need. "
            + (OWN_DECISION if shape == "wsd" else STEPS_UNTIL_THEN)
        )
    if critical is not None:
        reasons.append(
            f"The critical batch size to this loss is {critical} examples: a run at that batch size takes twice the "
            "fewest steps and twice the fewest examples with which the loss can be reached."
        )
    reasons.append(_step_cost_sentence(price))
    reasons.extend(_neighbour_sentences(goal, best, points, price))
    if best.batch_size == max(point.batch_size for point in points):
        reasons.append(
            f"No batch above {best.batch_size} was considered. Without batch_sizes=(least, most) plans go up to twice "
            "the largest batch that ran, as far as memory and the data allow."
        )
    if isinstance(goal, ReachLoss):
        reasons.append(_schedule_sentence(segments, relative_cost))
    if expected_regret is not None:
        reasons.append(
            f"The plan costs {expected_regret:.0%} more than the best setting would, on average over what the forecast "
            "leaves open. Errors of the law itself come on top of that."
        )
    return tuple(reasons)


def _step_cost_sentence(price: StepCost) -> str:
    takes = "takes" if price.unit == "seconds" else "costs"
    if price.knees:
        return f"A step {takes} {price.in_words()}."
    if price.per_example == 0:
        return "Only steps count, so the largest useful batch is best."
    if price.per_step == 0:
        return (
            "Only examples count, which favours small batches; of settings within 1 % of the best the one with the "
            "fewest steps is taken."
        )
    even = price.per_step / price.per_example
    told = f"A step {takes} {price.in_words()}"
    if price.unit == BALANCED:
        told += " (one unit is the fewest steps, or the fewest examples, that can reach the loss)"
    return (
        f"{told}; its fixed part is worth {number(even)} examples, so the best batch size lies near "
        f"sqrt(critical batch size x {number(even)})."
    )


def _time_sentence(goal: LossGoal, best: Alternative, points: Sequence[Alternative], taken: float) -> str:
    """How long a run takes whose price is not time, and what the fastest that is nearly as good takes."""
    told = f"The run takes {time_in_words(taken)}, by the measured time of a step."
    by_loss = isinstance(goal, LowestLoss)

    def change(point: Alternative) -> float:
        return (point.loss.value / best.loss.value if by_loss else point.cost.value / best.cost.value) - 1.0

    near = [p for p in points if p.seconds is not None and change(p) <= NEARLY]
    fastest = min(near, key=lambda p: p.seconds.value if p.seconds is not None else math.inf, default=best)
    if fastest.seconds is None or fastest.seconds.value > FASTER * taken:
        return told
    more = change(fastest)
    worse = f"costs {abs(more):.0%} {'less' if more < 0 else 'more'}"
    if by_loss:
        worse = f"ends at a loss of {fastest.loss.value:.4g} in place of {best.loss.value:.4g}"
    elif more < -0.01:
        worse += DEARER
    remedy = "bound the plan by batch_sizes=(least, most)"
    remedy = remedy if by_loss else f"give the goal in seconds, or {remedy}"
    time = f"{time_in_words(fastest.seconds.value)}, {number(taken / fastest.seconds.value)} times less,"
    return f"{told} Batch size {fastest.batch_size} takes {time} and {worse}. For less time {remedy}."


def _neighbour_sentences(
    goal: LossGoal, best: Alternative, points: Sequence[Alternative], price: StepCost
) -> list[str]:
    halves = [p for p in points if p.batch_size * 2 == best.batch_size]
    doubles = [p for p in points if p.batch_size == 2 * best.batch_size]
    named = [("Half", p) for p in halves] + [("Twice", p) for p in doubles]
    if isinstance(goal, LowestLoss):
        return [
            f"{word} the batch ({p.batch_size}) ends at a loss of {p.loss.value:.4g}{_time_of(p, price)}"
            f"{DEARER if p.loss.value < 0.99 * best.loss.value else ''}."
            for word, p in named
        ]
    return [_neighbour_sentence(word, p, best, price) for word, p in named]


def _time_of(point: Alternative, price: StepCost) -> str:
    timed = point.seconds is not None and price.unit != "seconds"
    return f" in {time_in_words(point.seconds.value)}" if timed and point.seconds is not None else ""


def _neighbour_sentence(word: str, other: Alternative, best: Alternative, price: StepCost) -> str:
    change = other.cost.value / best.cost.value - 1.0
    # The choice weighs all that is possible, so a neighbour may be cheaper by the middle prediction alone.
    doubt = DEARER if change < -0.01 else ""
    more = f"{abs(change):.0%} {'fewer' if change < 0 else 'more'} {price.unit}"
    cost = f"as many {price.unit}" if abs(change) < 0.005 else more
    return (
        f"{word} the batch ({other.batch_size}) takes {other.steps.value:,.0f} steps and "
        f"{other.examples.value:,.0f} examples: {cost}{doubt}."
    )


def _schedule_sentence(segments: Sequence[Segment], relative_cost: float) -> str:
    if len(segments) == 1:
        return "The batch size stays the same during the run: raising it is not certain to save 2 %."
    path = " to ".join(str(segment.batch_size) for segment in segments)
    return f"The schedule raises the batch size ({path}) and is predicted to cost {1.0 - relative_cost:.0%} less."
