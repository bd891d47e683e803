"""The benchmark of laws: what it samples of a sweep, and that held-back decays are not among what is fitted."""

from __future__ import annotations

import math

import law
import numpy as np
import pytest
from truth.curves import FOLDER, Run, unpack

PROBLEM = "quadratic"


@pytest.fixture(scope="module")
def decaying() -> list[Run]:
    return [run for run in unpack(FOLDER / f"{PROBLEM}-decaying.npz") if run.examples]


def test_points_are_losses_of_the_runs_at_their_examples(decaying: list[Run]) -> None:
    sample = law.Sample(PROBLEM)
    for run in decaying[::40]:
        sample.add(run, ends=bool(run.horizon))
    points = sample.points
    examples = np.cumsum(points.courses.steps * points.courses.batch_sizes, axis=1)[points.run, points.piece]
    for i, at, found in zip(points.run, examples, points.log_losses, strict=True):
        run = sample.runs[i]
        assert math.exp(found) == pytest.approx(np.interp(at, run.examples, run.losses), rel=1e-4)
    ended = [i for i, run in enumerate(sample.runs) if run.horizon]
    last = points.courses.learning_rates[ended, (points.courses.steps[ended] > 0).sum(axis=1) - 1]
    assert (last < 0.2 * points.courses.learning_rates[ended].max(axis=1)).all(), "the rate has decayed"


def test_a_run_that_a_lower_rate_beats_by_far_is_broken(decaying: list[Run]) -> None:
    run = next(r for r in decaying if r.horizon == 4096 and r.batch_size == 32)
    higher = Run(
        32, 1e3, 0, 4096, "reached", run.examples, tuple(2.0 * loss for loss in run.losses), run.held_out, "wsd"
    )
    assert law._broke(higher, [*decaying, higher])
    assert not law._broke(run, [run, higher])


def test_few_cooldowns_are_shown(decaying: list[Run]) -> None:
    ends = {run.key: math.log(run.losses[-1]) for run in decaying if run.horizon}
    shown = law._few_cooldowns([run for run in decaying if run.horizon], ends)
    assert 6 <= len(shown) <= 12
    assert len({key[0] for key in shown}) == 3


def test_errors_count_near_the_best_and_regret_is_of_the_chosen_rate() -> None:
    cells = {(8, 64): {0.1: [(0.0, 0.1)], 0.2: [(0.2, 0.05)], 0.4: [(1.0, 0.5)]}}
    errors, regrets = law._errors_and_regrets(cells)
    assert errors == pytest.approx([0.1, -0.15])
    assert regrets == pytest.approx([0.2])
