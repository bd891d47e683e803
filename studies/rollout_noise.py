"""Noise scales along one run of a task whose model acts, plain and in the optimizer's metric.

Policy and value are trained by one loss. The value's errors are as large as the rewards of an episode, so the plain
noise scale is the value's; an adaptive optimizer divides every coordinate by the size of its own gradient, and so does
its metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from batchopt import TrainingTask
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun


def noise_along(
    name: str,
    task: TrainingTask,
    *,
    batch_size: int,
    rate: float,
    updates: Sequence[int],
    unit: int,
    examples: int,
    scored: bool = True,
) -> list[dict[str, Any]]:
    """Readings after so many updates, printed as they are taken.

    Args:
        name: of the game, for the readings.
        task: what is trained.
        batch_size: in examples.
        rate: the learning rate, which is kept.
        updates: rising.
        unit: what is counted, in one example.
        examples: of a reading at most.
        scored: whether to play for the score as well.
    """
    readings, run = [], TrainingRun(task, learning_rate=rate, seed=0)
    for count in updates:
        while run.steps < count:
            run.step(batch_size)
        score = task.data.score_of(run.evaluate()) if scored else None
        told: dict[str, Any] = {"game": name, "updates": count, "score": score}
        for kind in ("simple", "preconditioned") if count else ("simple",):  # an optimizer has no metric at first
            found = measure_run(run, kind=kind, relative_width=0.5, max_examples=examples).batch_size
            told[kind] = [unit * each if math.isfinite(each) else None for each in (found.value, found.low, found.high)]
        readings.append(told)
        print(json.dumps(told), flush=True)
    return readings
