"""The reference run: noise scales along it, and branches from the middle of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from batchopt.errors import NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.noise_scale import MeasuredAt
from batchopt.probing.branches import Leg
from batchopt.probing.budget import SHARES
from batchopt.probing.data import evaluation_examples
from batchopt.probing.journal import Part
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun, load_snapshot
from batchopt.probing.session import Session, StopProbe
from batchopt.probing.short_runs import last_loss

LEVELS = 6
"""Points at which the noise scale is measured: initialisation, two of the short run, three of the reference run."""
RELATIVE_WIDTH = 0.2
"""A noise scale is measured until its interval is this narrow, or its share of the budget is spent."""
BURN_IN = 0.3
"""Share of a later branch that is not on the clock."""


def measure_initial(session: Session, learning_rate: float | None, batch_size: int) -> None:
    """Loss and noise scale at initialisation."""

    def work() -> Part:
        began = time.perf_counter()
        run = TrainingRun(session.task, learning_rate=learning_rate or 1.0, seed=session.seed)
        loss = run.evaluate()
        share = int(SHARES["noise scales"] * session.budget / LEVELS - evaluation_examples(session.task) / 3.0)
        noise = measure_run(
            run, batch_size=batch_size, relative_width=RELATIVE_WIDTH, max_examples=share, seed=session.seed
        )
        at = MeasuredAt(0, loss, batch_size, learning_rate or 1.0)
        spent = noise.examples + evaluation_examples(session.task) / 3.0
        spending = Spending("noise scales", spent, 0, time.perf_counter() - began)
        return Part(spending, noise_scale=replace(noise, at=at))

    try:
        part = session.do("noise-0", work)
    except NonFiniteLossError as error:
        raise StopProbe(f"the loss is not finite at initialisation ({error})") from None
    if part.noise_scale is not None and part.noise_scale.at is not None:
        session.initial_loss = part.noise_scale.at.loss


def reference_run(session: Session, winner: Leg, batch_size: int) -> Leg:
    """Carry the best large-batch run on in segments; measure the noise scale at every segment's end."""
    budget = SHARES["reference run"] * session.budget
    leg = winner
    for level, name in enumerate((winner.name.replace("rung-1", "rung-0"), winner.name), start=1):
        if name in session.parts:
            _noise(session, name, level, leg)
    for k, share in enumerate((0.15, 0.35, 0.5)):
        segment = replace(
            leg, name=f"reference-{k}", part="reference run", continues=leg.name, leaves=None, budget=share * budget
        )
        (part,) = session.run([segment])
        if last_loss(part) is None:
            raise StopProbe(
                f"the reference run diverged at batch size {batch_size}: {part.failure or 'its loss blew up'}"
            )
        leg = segment
        _noise(session, segment.name, 3 + k, segment)
        session.check_time()
    return leg


def _noise(session: Session, of: str, level: int, leg: Leg) -> None:
    """Noise scale at the end of a leg, within its share of the budget."""
    branch = session.parts[of].branch
    if branch is None:
        return

    def work() -> Part:
        began = time.perf_counter()
        run = TrainingRun(session.task, learning_rate=leg.learning_rate, seed=session.seed)
        load_snapshot(run, session.journal.snapshot(of))
        share = int(SHARES["noise scales"] * session.budget / LEVELS)
        noise = measure_run(
            run, batch_size=leg.batch_size, relative_width=RELATIVE_WIDTH, max_examples=share, seed=session.seed
        )
        at = MeasuredAt(branch.curve.examples[-1], branch.curve.losses[-1], leg.batch_size, leg.learning_rate)
        spending = Spending("noise scales", float(noise.examples), 0, time.perf_counter() - began)
        return Part(spending, noise_scale=replace(noise, at=at))

    try:
        session.do(f"noise-{level}", work)
    except NonFiniteLossError as error:
        raise StopProbe(f"a gradient is not finite at loss {branch.curve.losses[-1]:.4g} ({error})") from None


def later_branches(session: Session, reference: Leg, small: int, large: int, low: int, high: int) -> None:
    """Branches from a point of the reference run at a smaller and a larger batch size.

    The learning rate goes with the root of the batch size. After the change the loss first settles to the new setting's
    own level: a burn-in that is not on the clock.
    """
    origin = session.parts["reference-0"].branch
    sizes = [size for size in (max(small, large // 4), min(4 * large, high)) if low <= size <= high and size != large]
    if origin is None or not sizes:
        return
    budget = SHARES["later branches"] * session.budget / len(sizes)
    session.run(
        [
            Leg(
                name=f"later-{size}",
                part="later branches",
                batch_size=size,
                learning_rate=reference.learning_rate * math.sqrt(size / large),
                budget=budget,
                seed=session.seed,
                leaves="reference-0",
                start_examples=origin.curve.examples[-1],
                burn_in=BURN_IN,
                initial_loss=session.initial_loss,
            )
            for size in sizes
        ]
    )
