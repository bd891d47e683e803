"""The long runs: the best short run of each batch size goes on and cools down; noise scales are measured on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from batchopt.errors import BudgetError, NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.noise_scale import MeasuredAt
from batchopt.probing.branches import Leg
from batchopt.probing.budget import SHARES
from batchopt.probing.cooldowns import cooldowns_of_long_runs
from batchopt.probing.journal import Part
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun
from batchopt.probing.session import Session, StopProbe
from batchopt.probing.short_runs import last_loss
from batchopt.probing.snapshot import load_snapshot

REFERENCE = "reference"
"""Name of the part that holds the whole reference run."""
LEVELS = 3
"""Loss levels at which noise scales are measured: after the best run of the learning-rate search, and after the short
and the long run at the large batch size."""
RELATIVE_WIDTH = 0.5
"""A noise scale is measured until its interval is this narrow, or its share of the budget is spent: its standard error
is then 0.15 in logs, and from what the law needs it differs by 0.65."""


def long_runs(session: Session, found: Leg, small: Sequence[Leg], large: Sequence[Leg]) -> None:
    """Carry the best short run of each batch size on, and cool it down; the large one is the reference.

    Args:
        session: the probe.
        found: the best run of the learning-rate search.
        small: short runs at the small batch size, the best first; may be empty.
        large: likewise at the large one; at least one.

    Raises:
        StopProbe: a long run diverged, or a gradient is not finite.
    """
    _noise(session, 0, found)
    _noise(session, 1, large[0])
    session.check_time()
    budget = _budget(session) / (2 if small else 1)
    reference, failure = _go_on(session, large[0], REFERENCE, budget)
    if failure is not None:
        raise StopProbe(failure)
    _noise(session, 2, reference)
    session.check_time()
    legs = [reference]
    if small:
        longer, failure = _go_on(session, small[0], "long-small", budget)
        legs += [longer] if failure is None else []
    cooldowns_of_long_runs(session, legs)
    if failure is not None:
        raise StopProbe(failure)


def _budget(session: Session) -> float:
    """Of all long runs. What the parts before have left is shared by them and their cooldowns."""
    left = session.left_of("short runs, large batch", "short runs, small batch", "cooldowns of short runs")
    own, cooldowns = SHARES["long runs"], SHARES["cooldowns of long runs"]
    return own * session.budget + left * own / (own + cooldowns)


def _go_on(session: Session, leg: Leg, name: str, budget: float) -> tuple[Leg, str | None]:
    """The longer run, and why it came to nothing."""
    longer = replace(leg, name=name, part="long runs", continues=leg.name, budget=budget, ends_evaluated=True)
    (part,) = session.run([longer])
    if last_loss(part) is not None:
        return longer, None
    return longer, f"the long run at batch size {leg.batch_size} diverged: {part.failure or 'its loss blew up'}"


def _noise(session: Session, level: int, leg: Leg) -> None:
    """The simple noise scale at the end of a leg, within its share of the budget."""
    examples = int(SHARES["noise scales"] * session.budget / LEVELS)
    try:
        session.do(f"noise-{level}", partial(_measure, session, leg, examples))
    except NonFiniteLossError as error:
        where = f"at batch size {leg.batch_size} and learning rate {leg.learning_rate:.3g}"
        raise StopProbe(f"a gradient is not finite {where} ({error})") from None


def _measure(session: Session, leg: Leg, examples: int) -> Part:
    began = time.perf_counter()
    run = _run_of(session, leg)
    try:
        noise = measure_run(
            run,
            kind="simple",
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
