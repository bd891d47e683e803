"""The long runs: the best short run of each batch size goes on and cools down; noise scales are measured on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from batchopt._wording import number
from batchopt.errors import BudgetError, NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.noise_scale import MeasuredAt
from batchopt.probing.aim import Aim
from batchopt.probing.branches import Leg
from batchopt.probing.budget import LEAST_COOLDOWN_STEPS, LONG_COOLDOWNS, SHARES
from batchopt.probing.cooldowns import cooldowns_of_long_runs
from batchopt.probing.journal import Part
from batchopt.probing.kinds.preconditioned import is_adaptive
from batchopt.probing.measure import measure_run
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.run import TrainingRun
from batchopt.probing.session import Session, StopProbe
from batchopt.probing.short_runs import last_loss
from batchopt.probing.snapshot import load_snapshot
from batchopt.probing.task import TrainingTask

REFERENCE = "reference"
"""Name of the part that holds the whole reference run."""
LEVELS = 3
"""Loss levels at which noise scales are measured: after the best run of the learning-rate search, and after the short
and the long run at the large batch size."""
RELATIVE_WIDTH = 1.0
"""A noise scale is measured until its interval is this narrow, or its share of the budget is spent: its standard error
is then 0.3 in logs, and from what the law needs it differs by 0.65: half as wide an interval would bring the two
together from 0.72 to 0.67, for four times the examples."""


def noise_kind(task: TrainingTask, adaptive: bool | None) -> str:
    """Which noise scale a probe measures.

    The simple one; of roll-outs under an adaptive optimizer the one in the optimizer's metric. An actor and critic
    share one loss, and where rewards are large the simple one is that of the critic's squared error alone.

    Args:
        task: what is probed.
        adaptive: whether its optimizer scales coordinates by their gradients; None where that is not known.
    """
    return "preconditioned" if adaptive and isinstance(task.data, Rollouts) else "simple"


def noise_of_short_runs(session: Session, found: Leg, large: Leg) -> None:
    """Measure the noise scale after the best run of the learning-rate search, and after that of the large batch size.

    Raises:
        StopProbe: a gradient is not finite.
    """
    read = [_noise(session, level, leg).noise_scale for level, leg in enumerate((found, large))]
    if any(scale is not None and scale.kind == "preconditioned" for scale in read):
        session.decisions.append(
            "Noise scales are in the optimizer's metric: without it, that of actor and critic is the critic's alone."
        )
    session.check_time()


def long_runs(session: Session, small: Sequence[Leg], large: Sequence[Leg], aim: Aim | None) -> None:
    """Carry the best short run of each batch size on, and cool it down; the large one is the reference.

    Args:
        session: the probe.
        small: short runs at the small batch size, the best first; may be empty.
        large: likewise at the large one; at least one.
        aim: what is known of the planned run: no run is longer, cooldowns included, and none is made if they count for
            more than they can save. None without a goal.

    Raises:
        StopProbe: a long run diverged, or a gradient is not finite.
    """
    budget = _budget(session) / (2 if small else 1)
    legs = [_longer(session, leg, aim, budget) for leg in (*large[:1], *small[:1])]
    going = [leg for leg in legs if leg.most_steps is None or leg.most_steps >= LEAST_COOLDOWN_STEPS]
    session.reference = REFERENCE if legs[0] in going else large[0].name
    if not going:
        session.decisions.append("The short runs are as long, with a cooldown, so none went on.")
        return
    if aim is not None and (price := _price(session, going)) > aim.saved:
        session.decisions.append(f"Longer runs would count for {number(price)}, more than that, so none was made.")
        session.reference = large[0].name
        return
    ended, failure = [], None
    for leg in going:
        failure = _go_on(session, leg)
        if failure is not None and leg.name == REFERENCE:
            raise StopProbe(failure)
        if leg.name == REFERENCE:
            _noise(session, 2, leg)
        session.check_time()
        ended += [leg] if failure is None else []
    if ended:
        cooldowns_of_long_runs(session, ended)
        seen = [f"{session.parts[leg.name].examples_seen:,} examples at batch size {leg.batch_size}" for leg in ended]
        session.decisions.append(f"The best short run went on, to {' and to '.join(seen)}, and cooled down.")
    if failure is not None:
        raise StopProbe(failure)


def _longer(session: Session, leg: Leg, aim: Aim | None, budget: float) -> Leg:
    """The leg that goes on, no further than lets its longest cooldown end where the planned run does."""
    name = REFERENCE if leg.part == "short runs, large batch" else "long-small"
    longer = replace(leg, name=name, part="long runs", continues=leg.name, budget=budget, ends_evaluated=True)
    if aim is None or math.isinf(aim.horizon):
        return longer
    end = aim.horizon / (1.0 + max(LONG_COOLDOWNS))
    left = math.floor((end - session.parts[leg.name].examples_seen) / leg.batch_size)
    return replace(longer, most_steps=max(0, left))


def _price(session: Session, legs: Sequence[Leg]) -> float:
    """What long runs count for, with their cooldowns and the noise scale of the reference run."""
    total = SHARES["noise scales"] * session.budget / LEVELS
    for leg in legs:
        steps = math.floor(leg.budget / leg.step_price)
        steps = steps if leg.most_steps is None else min(steps, leg.most_steps)
        before = session.parts[leg.continues or ""].examples_seen / leg.batch_size
        total += (steps + sum(LONG_COOLDOWNS) * (before + steps)) * leg.step_price
    return min(total, session.left_of(*SHARES))


def _budget(session: Session) -> float:
    """Of all long runs. What the parts before have left is shared by them and their cooldowns."""
    left = session.left_of("short runs, large batch", "short runs, small batch", "cooldowns of short runs")
    own, cooldowns = SHARES["long runs"], SHARES["cooldowns of long runs"]
    return own * session.budget + left * own / (own + cooldowns)


def _go_on(session: Session, leg: Leg) -> str | None:
    """Why the longer run came to nothing; None if it did not."""
    (part,) = session.run([leg])
    if last_loss(part) is not None:
        return None
    return f"the long run at batch size {leg.batch_size} diverged: {part.failure or 'its loss blew up'}"


def _noise(session: Session, level: int, leg: Leg) -> Part:
    """The noise scale at the end of a leg, within its share of the budget."""
    examples = int(SHARES["noise scales"] * session.budget / LEVELS)
    try:
        return session.do(f"noise-{level}", partial(_measure, session, leg, examples))
    except NonFiniteLossError as error:
        where = f"at batch size {leg.batch_size} and learning rate {leg.learning_rate:.3g}"
        raise StopProbe(f"a gradient is not finite {where} ({error})") from None


def _measure(session: Session, leg: Leg, examples: int) -> Part:
    began = time.perf_counter()
    run = _run_of(session, leg)
    try:
        noise = measure_run(
            run,
            kind=noise_kind(session.task, is_adaptive(run.optimizer)),
            batch_size=leg.batch_size,
            relative_width=RELATIVE_WIDTH,
            max_examples=examples,
            seed=session.seed,
        )
    except BudgetError as error:  # a small probe: too few examples
        return Part(Spending("noise scales", 0.0, 0, time.perf_counter() - began), failure=str(error))
    branch = session.parts[leg.name].branch
    if branch is not None and branch.last_loss > 0:  # a mean over few batches of a loss that may be negative
        at = MeasuredAt(run.examples_seen, branch.last_loss, leg.batch_size, leg.learning_rate)
        noise = replace(noise, at=at)
    return Part(Spending("noise scales", float(noise.examples), 0, time.perf_counter() - began), noise_scale=noise)


def _run_of(session: Session, leg: Leg) -> TrainingRun:
    run = TrainingRun(session.task, learning_rate=leg.learning_rate, seed=session.seed)
    load_snapshot(run, session.journal.snapshot(leg.name))
    return run
